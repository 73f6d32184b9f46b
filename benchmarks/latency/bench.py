"""How fast, how large: every engine takes its turn, round after round, on the same prompts.

    round 0:  probe A probe B probe C      round 1:  probe A probe B probe C      ...

What slows the machine for a minute then slows all alike, and the probes of the memory bandwidth
between the turns show it. A turn is a process of its own: load, then each case once, behind an
untimed short run. What goes wrong in it becomes a row that says so, and the others go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines.table import ENGINES, Variant
from benchmarks.engines.workers import LOAD_SECONDS, convert, start_worker
from benchmarks.latency import file_cache, machine
from benchmarks.models.model import Model
from benchmarks.rows import results
from neuralchat_lite.environments.process import Worker
from neuralchat_lite.errors import EngineError

WARM_UP_CONTEXT = 32  # tokens of the untimed run that goes before a case
RESIDENT_WHEN_COLD = 0.01  # share of a model's pages that may still be in memory
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One run of `generate`: `batch` prompts of `context` tokens, `new_tokens` behind each.

    rounds: in how many rounds it is run
    """

    batch: int
    context: int
    new_tokens: int
    rounds: int

    @property
    def name(self) -> str:
        return f"batch {self.batch}, context {self.context}"


@dataclass(frozen=True)
class Profile:
    """What a run consists of; `variants` are those that it takes when none are asked for."""

    shape: str
    cases: tuple[Case, ...]
    variants: tuple[str, ...]

    @property
    def rounds(self) -> int:
        return max(case.rounds for case in self.cases)


MAIN = (
    "neuralchat_lite:int4-bf16", "neuralchat_lite:int4-int8", "neuralchat_lite:int8-bf16",
    "transformers:bf16", "ipex:bf16", "ipex:bf16-llm", "itrex:int4-int8",
    "llamacpp:Q4_0", "llamacpp:Q8_0", "openvino", "onnxruntime", "torchao:int4", "ctranslate2",
)  # fmt: skip
PROFILES = {
    "quick": Profile(
        "100m",
        (Case(1, 32, 32, 5), Case(1, 512, 16, 5), Case(4, 32, 16, 5)),
        ("neuralchat_lite:int4-bf16", "neuralchat_lite:int8-bf16", "transformers:bf16"),
    ),
    # A prompt of 2,048 tokens takes half a minute with most engines: one round of it, not five.
    # A round has a sample of the first token, and of each decoded one.
    "full": Profile(
        "1b",
        (
            Case(1, 32, 16, 5),
            Case(4, 32, 8, 5),
            Case(8, 32, 8, 3),
            Case(1, 512, 8, 3),
            Case(1, 2048, 8, 1),
        ),
        MAIN,
    ),
    "thorough": Profile(
        "1b",
        tuple(Case(batch, context, 32, 7) for context in (32, 512, 2048) for batch in (1, 4, 8)),
        tuple(ENGINES),
    ),
}


def prompts_for(case: Case, vocab_size: int, seed: int = 0) -> list[list[int]]:
    """The same random ids for every engine, without the first three, which are special."""
    generator = np.random.default_rng([seed, case.batch, case.context])
    ids: list[list[int]] = generator.integers(3, vocab_size, (case.batch, case.context)).tolist()
    return ids


def digest_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def turns(variants: Sequence[Variant], rounds: int) -> Iterator[tuple[int, Variant]]:
    """A B C A B C …"""
    for number in range(rounds):
        for variant in variants:
            yield number, variant


@dataclass
class Bench:
    """A run of a profile.

    python_of: the interpreter of an engine
    results: the file that is written, and read first
    limit: seconds for one run of a case
    seconds: after which no turn begins
    say: gets a line for people about each step
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
        rows = results.read(self.results) if self.results.exists() else []
        self.done = results.done(rows)
        self.failed: set[tuple[str, str, str]] = set()  # not tried again within this run
        self.clock = machine.CpuTime.now()
        self.prompts = {
            case: prompts_for(case, self.model.architecture.vocab_size) for case in self.cases
        }

    def run(self, arguments: Mapping[str, Any]) -> None:
        """Measure what is not in the results yet."""
        results.append(self.results, machine.run_row(self.threads, arguments))
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
        """The cases that a turn still has to run."""
        if any(self.has_failed(variant, stage) for stage in ("prepare", "start", "load")):
            return []
        return [
            case
            for case in self.cases
            if number < case.rounds
            and not self.has_failed(variant, case.name)
            and results.key(self.row(variant, number, "time_per_token_s", case)) not in self.done
        ]

    def has_failed(self, variant: Variant, stage: str) -> bool:
        return (*id_of(variant), stage) in self.failed

    def prepared(self, variant: Variant) -> bool:
        """Whether the variant's files are there; they are made now when they are missing."""
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
            results.append(
                self.results,
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

    def row(self, variant: Variant, number: int, metric: str, case: Case | None) -> Row:
        """What names a measurement, without its samples."""
        return {
            "kind": "latency",
            "engine": variant.engine,
            "variant": variant.name,
            "model": self.model.name,
            "shape_sha256": self.model.digest,
            "prompt_sha256": None if case is None else digest_of(self.prompts[case]),
            "threads": self.threads,
            "metric": metric,
            "batch": None if case is None else case.batch,
            "context": None if case is None else case.context,
            "round": number,
        }

    def add(self, row: Row) -> None:
        if results.key(row) in self.done:  # a turn that was interrupted is loaded once more
            return
        results.append(self.results, row)
        self.done |= results.done([row])

    def worker(self, variant: Variant) -> Worker:
        return start_worker(variant, self.model, self.threads, self.python_of(variant.engine))

    def add_probe(self) -> None:
        steal = machine.CpuTime.now().steal_share_since(self.clock)
        results.append(
            self.results,
            {
                "kind": "probe",
                "bandwidth_bytes_per_s": self.probe(),
                "threads": self.threads,
                "time": machine.now(),
                "steal_share": steal,
                "load_average": machine.load_average(),
            },
        )


@dataclass
class Turn:
    """One variant in one round: its worker loads, warms up, and runs the cases."""

    bench: Bench
    worker: Worker
    variant: Variant
    number: int
    cases: Sequence[Case]
    conditions: Row = dataclasses.field(default_factory=dict)

    def run(self) -> None:
        with self.bench.noting_failure(self.variant, "load"):
            loaded = self.load()
            for case in self.cases:
                with self.bench.noting_failure(self.variant, case.name):
                    self.run_case(case, loaded)
                if self.worker.ended is not None:
                    return  # the next round starts another one for the cases that are left
            self.add_memory()

    def load(self) -> Row:
        folder = self.bench.model.stored(self.variant)
        versions = self.worker.call("versions", timeout=LOAD_SECONDS)
        temperature, resident = self.temperature(folder)
        loaded: Row = self.worker.call(
            "load",
            timeout=LOAD_SECONDS,
            folder=str(folder),
            options=dict(self.variant.options),
            threads=self.bench.threads,
        )
        self.conditions = {
            **self.variant.options,
            **loaded["conditions"],
            "versions": versions,
            "environment": ENGINES[self.variant.engine].environment or "the harness' own",
        }
        self.add(f"load_{temperature}_s", [loaded["seconds"]], "s", {"pages_in_memory": resident})
        if self.number == 0:
            self.add("disk_bytes", [file_cache.disk_bytes(folder)], "bytes")
        return loaded

    def temperature(self, folder: Path) -> tuple[str, float]:
        """Drop the model from memory in the first round, and see to it that it is there later."""
        if self.number == 0:
            resident = file_cache.drop(folder)
            if resident <= RESIDENT_WHEN_COLD:
                return "cold", resident
            self.bench.say(f"  {resident:.0%} of {folder.name} stay in memory: no cold load")
        file_cache.read_all(folder)
        return "warm", file_cache.resident_share(folder)

    def run_case(self, case: Case, loaded: Row) -> None:
        prompts = self.bench.prompts[case]
        short = [ids[:WARM_UP_CONTEXT] for ids in prompts]
        self.worker.call("warm_up", timeout=self.bench.limit, prompts=short)
        ran = self.worker.call(
            "generate", timeout=self.bench.limit, prompts=prompts, new_tokens=case.new_tokens
        )
        more = {"new_tokens": case.new_tokens}
        if ran["own"]:
            more["own"] = ran["own"]
        fed = case.batch * case.context
        self.add("first_token_s", [ran["first_token_s"]], "s", more, case)
        self.add("prefill_tokens_per_s", [fed / ran["first_token_s"]], "tokens/s", more, case)
        if self.number == 0:
            keys = self.bench.model.kv_bytes(
                case.context + case.new_tokens // 2, loaded["kv_item_bytes"]
            )
            # Sequences of a batch share one reading of the weights; each has its own keys.
            size = loaded["weight_bytes"] + case.batch * keys
            self.add("bytes_per_token", [size], "bytes", {"per": "step of the batch"}, case)
        # Last, as it is what makes the case count as done.
        self.add("time_per_token_s", ran["step_s"], "s", more, case)

    def add_memory(self) -> None:
        for metric, size in self.worker.call("memory", timeout=LOAD_SECONDS).items():
            self.add(metric, [size], "bytes")

    def add(
        self,
        metric: str,
        samples: Sequence[float],
        unit: str,
        more: Mapping[str, Any] | None = None,
        case: Case | None = None,
    ) -> None:
        self.bench.add(
            {
                **self.bench.row(self.variant, self.number, metric, case),
                "unit": unit,
                "samples": list(samples),
                "conditions": {**self.conditions, **(more or {})},
                "time": machine.now(),
            }
        )


def id_of(variant: Variant) -> tuple[str, str]:
    return variant.engine, variant.name
