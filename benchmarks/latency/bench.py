"""How fast, how large: every engine takes its turn, round after round, on the same prompts.

    round 0:  probe A probe B probe C      round 1:  probe A probe B probe C      ...

Whatever slows the machine for a minute then slows all engines alike, and the probes of the memory
bandwidth between the turns show it. A turn is a process of its own: load, then each case once,
after an untimed short run. What fails becomes a `failure` row, and the others go on.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.engines.table import Variant
from benchmarks.engines.workers import convert, start_worker
from benchmarks.latency import machine
from benchmarks.latency.cases import Case, prompts_for, prompts_sha256
from benchmarks.latency.turn import Turn
from benchmarks.models.model import Model
from benchmarks.rows.results import ResultsFile
from benchmarks.rows.run import now, run_row
from neuralchat_lite.environments.process import Worker
from neuralchat_lite.errors import EngineError


def turns(variants: Sequence[Variant], rounds: int) -> Iterator[tuple[int, Variant]]:
    """A B C A B C …"""
    for number in range(rounds):
        for variant in variants:
            yield number, variant


@dataclass
class Bench:
    """A run of a profile.

    python_of: the interpreter of an engine
    results: the file to write; what it holds already is not measured again
    limit: seconds for one run of a case
    seconds: time after which no turn begins
    say: called with a line of text about each step
    """

    results: Path
    model: Model
    variants: Sequence[Variant]
    cases: Sequence[Case]
    threads: int
    python_of: Callable[[str], Path]
    limit: float = 300.0
    seconds: float = math.inf
    say: Callable[[str], None] = lambda line: None
    probe: Callable[[], float] = machine.probe_bandwidth

    def __post_init__(self) -> None:
        self.file = ResultsFile(self.results)
        self.failed: set[tuple[str, str, str]] = set()  # not tried again within this run
        self.clock = machine.CpuTime.now()
        self.prompts = {
            case: prompts_for(case, self.model.architecture.vocab_size) for case in self.cases
        }

    def run(self, arguments: Mapping[str, Any]) -> None:
        """Measure what is not in the results yet."""
        self.file.append(run_row(self.threads, arguments))
        start, rounds = time.monotonic(), max(case.rounds for case in self.cases)
        for number, variant in turns(self.variants, rounds):
            pending = self.pending(number, variant)
            if not pending:
                continue
            if time.monotonic() - start > self.seconds:
                self.say(f"time is up in round {number + 1} of {rounds}: --resume goes on")
                break
            if not self.prepared(variant):
                continue
            self.add_probe()
            self.say(f"round {number + 1} of {rounds}: {variant.label}")
            with self.noting_failure(variant, "start"), self.worker(variant) as worker:
                Turn(self, worker, variant, number, pending).run()
        self.add_probe()

    def pending(self, number: int, variant: Variant) -> list[Case]:
        """The cases that a turn has yet to run."""
        if any(self.has_failed(variant, stage) for stage in ("prepare", "start", "load")):
            return []
        return [
            case
            for case in self.cases
            if number < case.rounds
            and not self.has_failed(variant, case.name)
            and not self.file.has(self.row(variant, number, "time_per_token_s", case))
        ]

    def has_failed(self, variant: Variant, stage: str) -> bool:
        return (*id_of(variant), stage) in self.failed

    def prepared(self, variant: Variant) -> bool:
        """Whether the variant's files exist; missing ones are made now."""
        if not self.model.is_stored(variant):
            with self.noting_failure(variant, "prepare"):
                self.say(f"converting {self.model.name} for {variant.engine} ({variant.stored})")
                convert(variant, self.model, lambda: self.worker(variant))
        return self.model.is_stored(variant)

    @contextlib.contextmanager
    def noting_failure(self, variant: Variant, stage: str) -> Iterator[None]:
        """A worker's error becomes a row."""
        try:
            yield
        except EngineError as error:
            reason, _, lines = str(error).partition("Its last lines:\n")
            reason = " ".join(reason.removesuffix("; load the model again. ").split())
            self.say(f"  {variant.label}, {stage}: {reason}")
            self.failed.add((*id_of(variant), stage))
            self.file.append(
                {
                    "kind": "failure",
                    "engine": variant.engine,
                    "variant": variant.name,
                    "model": self.model.name,
                    "stage": stage,
                    "reason": reason,
                    "last_lines": [line.strip() for line in lines.splitlines()],
                },
            )

    def row(self, variant: Variant, number: int, metric: str, case: Case | None) -> dict[str, Any]:
        """The fields that identify a measurement, without its samples."""
        return {
            "kind": "latency",
            "engine": variant.engine,
            "variant": variant.name,
            "model": self.model.name,
            "shape_sha256": self.model.digest,
            "prompt_sha256": None if case is None else prompts_sha256(self.prompts[case]),
            "threads": self.threads,
            "metric": metric,
            "batch": None if case is None else case.batch,
            "context": None if case is None else case.context,
            "round": number,
        }

    def add(self, row: Mapping[str, Any]) -> None:
        if not self.file.has(row):  # a turn that was interrupted is loaded once more
            self.file.append(row)

    def worker(self, variant: Variant) -> Worker:
        return start_worker(variant, self.model, self.threads, self.python_of(variant.engine))

    def add_probe(self) -> None:
        steal = machine.CpuTime.now().steal_share_since(self.clock)
        self.file.append(
            {
                "kind": "probe",
                "bandwidth_bytes_per_s": self.probe(),
                "threads": self.threads,
                "time": now(),
                "steal_share": steal,
                "load_average": machine.load_average(),
            },
        )


def id_of(variant: Variant) -> tuple[str, str]:
    return variant.engine, variant.name
