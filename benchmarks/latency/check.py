"""Our figures beside those of the engines' own clocks.

llama.cpp keeps `llama_perf_context` and has `llama-bench`, OpenVINO GenAI keeps `perf_metrics`. The
clocks ran with the very samples; `llama-bench` runs now, on the same file with the same threads.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.models.kept import cache_root
from benchmarks.models.model import formats_folder
from benchmarks.rows.kinds import Row, label
from benchmarks.rows.samples import samples_of
from neuralchat_lite.errors import ConfigError

TOLERANCE = 0.10
LLAMACPP = "llamacpp"
PROMPT, DECODED, CONTEXT = 512, 16, 32  # of llama-bench; CONTEXT is ours, its own is empty


@dataclass(frozen=True)
class Agreement:
    """One figure from both sides, in the same unit."""

    what: str
    ours: float
    own: float

    @property
    def ratio(self) -> float:
        return self.ours / self.own

    @property
    def agrees(self) -> bool:
        return abs(self.ratio - 1) <= TOLERANCE


def agreements(rows: Sequence[Row], llama_bench: Path | None = None) -> Iterator[Agreement]:
    """Raises ConfigError when the rows hold nothing that could be compared."""
    found = list(with_own_clocks(rows))
    if llama_bench is not None:
        found += with_llama_bench(rows, llama_bench)
    if not found:
        raise ConfigError(
            "no engine of these results has a clock of its own: measure llamacpp or openvino"
        )
    yield from found


def with_own_clocks(rows: Iterable[Row]) -> Iterator[Agreement]:
    """Medians over the rounds. The clocks report means, so ours are means of a round too."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["kind"] != "latency":
            continue
        own = row["conditions"].get("own", {})
        if row["metric"] not in own:
            continue
        name = f"{label(row)}, {row['metric']}, batch {row['batch']}, "
        name += f"context {row['context']} ({own['clock']})"
        pairs.setdefault(name, []).append((statistics.mean(row["samples"]), own[row["metric"]]))
    for name, both in pairs.items():
        ours, own = zip(*both, strict=True)
        yield Agreement(name, statistics.median(ours), statistics.median(own))


def with_llama_bench(rows: Sequence[Row], program: Path) -> Iterator[Agreement]:
    """Run llama-bench on each file of llama.cpp that was measured."""
    measured = {
        (row["variant"], row["model"], row["shape_sha256"], row["threads"])
        for row in rows
        if row["kind"] == "latency" and row["engine"] == LLAMACPP
    }
    for variant, model, digest, threads in sorted(measured):
        formats = formats_folder(model, digest, cache_root())
        file = formats / f"{LLAMACPP}-{variant}" / "model.gguf"
        prefill, decoded = run_llama_bench(program, file, threads)
        mine = {
            **{"engine": LLAMACPP, "variant": variant, "batch": 1},
            **{"model": model, "shape_sha256": digest, "threads": threads},
        }
        speeds = samples_of(rows, metric="prefill_tokens_per_s", context=PROMPT, **mine)
        if speeds:
            yield Agreement(
                f"{LLAMACPP}:{variant}, tokens/s of a prompt of {PROMPT} (llama-bench)",
                statistics.median(speeds),
                prefill,
            )
        times = samples_of(rows, metric="time_per_token_s", context=CONTEXT, **mine)
        if times:
            yield Agreement(
                f"{LLAMACPP}:{variant}, tokens/s decoded (llama-bench)",
                1 / statistics.median(times),
                decoded,
            )


def run_llama_bench(program: Path, file: Path, threads: int) -> tuple[float, float]:
    """Its medians of five runs: prompt tokens/s, decoded tokens/s."""
    command = [str(program), "-m", str(file), "-t", str(threads), "-r", "5", "-o", "json"]
    command += ["-p", str(PROMPT), "-n", str(DECODED)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except OSError as error:
        raise ConfigError(f"{program} cannot be run ({error.strerror}): give llama-bench") from None
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"{program} failed: {error.stderr.strip()[-300:]}") from None
    by_kind = {
        entry["n_prompt"] > 0: statistics.median(entry["samples_ts"])
        for entry in json.loads(done.stdout)
    }
    return by_kind[True], by_kind[False]
