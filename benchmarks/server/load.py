"""Many clients of one server, and the same requests by threads in Python, in turns.

The requests are greedy continuations of random words; no prompt comes twice, so that no prefix is
remembered.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import neuralchat_lite as ncl
from neuralchat_lite.errors import ConfigError, EngineError

LOCUST = Path(__file__).parent / "locustfile.py"
SERVED = "measured"  # what requests call the model
LISTENING = "Listening at "
END_SECONDS = 60.0
TEXT = """
the of and to in is that it was for on are as with his they be at one have this from or had by hot
but some what there we can out other were all your when up use word how said each which do their
time will way about many then them would write like so these her long make thing see him two has
look more day could go come did my sound no most number who over know
"""


@dataclass(frozen=True)
class Load:
    """`requests` prompts of about `words` tokens with `new_tokens` after each."""

    requests: int
    words: int
    new_tokens: int

    def prompts(self, chance: random.Random) -> list[str]:
        words = TEXT.split()
        return [" ".join(chance.choices(words, k=self.words)) for _ in range(self.requests)]


@dataclass(frozen=True)
class Ran:
    """One turn.

    how: "threads" in Python, or "whole" or "streamed" answers of the server
    statuses: requests by the HTTP status of their answer; 0 for one that broke off
    first_s: seconds to the first byte of each stream
    """

    how: str
    at_once: int
    seconds: float
    tokens: int
    statuses: dict[int, int]
    first_s: Sequence[float] = ()

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds

    def first(self, part: float) -> float:
        """Seconds within which this part of the streams has begun."""
        return float(np.quantile(self.first_s, part))


def by_threads(model: ncl.Model, prompts: Sequence[str], load: Load, at_once: int) -> Ran:
    """Each thread waits for an answer before it asks for the next."""
    start = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        replies = list(
            pool.map(
                lambda prompt: model.generate(
                    prompt, max_new_tokens=load.new_tokens, ignore_eos=True
                ),
                prompts,
            )
        )
    seconds = time.perf_counter() - start
    tokens = sum(len(reply.token_ids) for reply in replies)
    return Ran("threads", at_once, seconds, tokens, {200: len(replies)})


def by_clients(
    address: str,
    name: str,
    prompts: Sequence[str],
    load: Load,
    at_once: int,
    stream: bool,
    limit: float = 1800.0,
) -> Ran:
    """locust's users, in a process of their own.

    limit: seconds for all requests
    Raises EngineError with the words of locust, and when the limit is over.
    """
    body = {
        "model": name,
        "max_tokens": load.new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": stream,
        **({"stream_options": {"include_usage": True}} if stream else {}),
    }
    with TemporaryDirectory() as folder:
        out, asked = Path(folder) / "out.json", Path(folder) / "asked.json"
        asked.write_text(
            json.dumps({"prompts": prompts, "body": body, "stream": stream, "out": str(out)}),
            encoding="utf-8",
        )
        command = [
            sys.executable,
            "-m",
            "locust",
            "-f",
            str(LOCUST),
            "--headless",
            "--only-summary",
        ]
        command += ["--host", address, "-u", str(at_once), "-r", str(at_once)]
        command += ["--asked", str(asked), "--run-time", "1h", "--loglevel", "ERROR"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=limit
            )
        except subprocess.TimeoutExpired:
            raise EngineError(f"the requests were not answered within {limit:g} s") from None
        if not out.exists():
            raise EngineError(f"locust failed:\n{done.stderr[-2000:]}")
        found = json.loads(out.read_text(encoding="utf-8"))
    statuses = {int(status): count for status, count in found["statuses"].items()}
    how = "streamed" if stream else "whole"
    return Ran(how, at_once, found["seconds"], found["tokens"], statuses, found["first_s"])


@contextmanager
def serving(model: str, options: Sequence[str]) -> Iterator[str]:
    """The address of `neuralchat-lite serve` in a process of its own. Raises EngineError."""
    command = [sys.executable, "-m", "neuralchat_lite", "serve", model, "--model-name", SERVED]
    command += ["--port", "0", *options]
    lines = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                lines.append(line)
                if line.startswith(LISTENING):
                    break
            else:
                raise EngineError(f"the server did not start:\n{''.join(lines)[-2000:]}")
            # Its log must go somewhere, or it waits for a reader.
            with ThreadPoolExecutor(1) as reader:
                reader.submit(process.stderr.read)
                yield line.split()[2].removesuffix("/v1")
                process.terminate()
        finally:
            process.terminate()
            process.wait(END_SECONDS)


def require_locust() -> None:
    # Not imported: it would change sockets and locks of this process.
    if find_spec("locust") is None:
        raise ConfigError(
            "this measurement needs locust, and it is not installed: "
            "run `pip install 'neuralchat_lite[serve,load]'`"
        )
