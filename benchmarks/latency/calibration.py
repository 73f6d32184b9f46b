"""Quantizing with calibration in a process of its own: its time, its memory, and what a kill costs.

A random checkpoint is enough: what an algorithm computes depends on the shapes, not on the values.
"""

from __future__ import annotations

import math
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.files.work import UNFINISHED
from neuralchat_lite.packed.manifest import STAMP

POLL_SECONDS = 0.02
NONE = -1
# Of /proc/PID/status: the process' own memory, and pages of files, which the system can take back.
OWN, MAPPED = "RssAnon", "RssFile"


@dataclass
class Process:
    """What a process has used: the largest values that were seen, in bytes.

    peak: own memory and mapped pages together
    own: memory that no file backs
    blocks: the largest number of finished ones that was seen
    block_seconds: of one, on average
    killed: before its work was done
    """

    seconds: float = 0.0
    peak: int = 0
    own: int = 0
    blocks: int = 0
    block_seconds: float = 0.0
    killed: bool = False

    def look(self, pid: int) -> None:
        try:
            text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        except OSError:  # it has just ended
            return
        values = dict(line.split(":", 1) for line in text.splitlines())
        if OWN not in values:  # it is a zombie
            return
        self.own = max(self.own, kilobytes(values[OWN]))
        self.peak = max(self.peak, kilobytes(values["VmHWM"]))


def kilobytes(text: str) -> int:
    return int(text.split()[0]) << 10


def command(model: Path, out: Path, options: Sequence[str]) -> list[str]:
    return [
        sys.executable,
        "-m",
        "neuralchat_lite",
        "quantize",
        str(model),
        "-o",
        str(out),
        *options,
    ]


def run(
    model: Path, out: Path, options: Sequence[str], kill: tuple[int, float] | None = None
) -> Process:
    """Quantize a model into `out`, whose parent holds nothing else.

    options: of `neuralchat-lite quantize`
    kill: the number of a block, and how many seconds after its begin the process is killed; its
        unfinished work stays beside `out`
    Raises CheckpointError when the command fails.
    """
    found = Process()
    start = time.monotonic()
    begun: dict[int, float] = {}  # block -> when it was seen first
    with subprocess.Popen(
        command(model, out, options), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            found.look(process.pid)
            now = time.monotonic()
            block = in_block(out.parent)
            begun.setdefault(block, now)
            if kill is not None and now >= begin_of(kill[0], begun) + kill[1]:
                process.kill()
                break
        _, errors = process.communicate()
    shot = kill is not None and process.returncode == -signal.SIGKILL
    found.killed = shot and not out.exists()
    found.seconds = time.monotonic() - start
    begun.pop(NONE, None)
    if begun:
        found.blocks = max(begun)
        found.block_seconds = (max(begun.values()) - min(begun.values())) / max(len(begun) - 1, 1)
    if process.returncode and not shot:
        raise CheckpointError(f"{model} was not quantized:\n{errors}")
    return found


def begin_of(block: int, begun: Mapping[int, float]) -> float:
    """When a block, or one after it, was seen first."""
    return min((moment for seen, moment in begun.items() if seen >= block), default=math.inf)


def in_block(folder: Path) -> int:
    """The number of the block in work; NONE before the first one has its inputs."""
    if not any(folder.glob(f"{UNFINISHED}*/*.f32")) and not finished_blocks(folder):
        return NONE
    return len(finished_blocks(folder))


def finished_blocks(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{UNFINISHED}*/block-*.safetensors"))


def differing(first: Path, second: Path) -> list[str]:
    """Names of the files that two folders have not alike. The stamp holds times and is left out."""
    names = {path.name for folder in (first, second) for path in folder.iterdir()} - {STAMP}
    return sorted(name for name in names if not alike(first / name, second / name))


def alike(first: Path, second: Path) -> bool:
    if not (first.is_file() and second.is_file()):
        return False
    return first.read_bytes() == second.read_bytes()


def write_texts(path: Path, vocabulary: int, words: int) -> Path:
    """Words of the tokenizer of `random_checkpoint.write_tokenizer`."""
    chance = random.Random(0)
    path.write_text(" ".join(f"t{chance.randrange(3, vocabulary)}" for _ in range(words)))
    return path
