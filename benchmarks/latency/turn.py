"""One variant in one round: load, warm up, run the cases, and a row for each metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.engines.table import ENGINES, Variant
from benchmarks.engines.workers import LOAD_SECONDS
from benchmarks.latency import file_cache
from benchmarks.latency.cases import Case
from benchmarks.rows.run import now
from neuralchat_lite.environments.process import Worker

if TYPE_CHECKING:
    from benchmarks.latency.bench import Bench

WARM_UP_CONTEXT = 32  # tokens of the untimed run before a case
RESIDENT_WHEN_COLD = 0.01  # share of a model's pages that may still be in memory


@dataclass
class Turn:
    """One variant in one round: its worker loads, warms up, and runs the cases."""

    bench: Bench
    worker: Worker
    variant: Variant
    number: int
    cases: Sequence[Case]
    conditions: dict[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        with self.bench.noting_failure(self.variant, "load"):
            loaded = self.load()
            for case in self.cases:
                with self.bench.noting_failure(self.variant, case.name):
                    self.run_case(case, loaded)
                if self.worker.ended is not None:
                    return  # the next round starts another one for the cases that are left
            self.add_memory()

    def load(self) -> dict[str, Any]:
        folder = self.bench.model.stored(self.variant)
        versions = self.worker.call("versions", timeout=LOAD_SECONDS)
        temperature, resident = self.temperature(folder)
        loaded: dict[str, Any] = self.worker.call(
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
        """Drop the model's files from memory in the first round, else read them into it."""
        if self.number == 0:
            resident = file_cache.drop(folder)
            if resident <= RESIDENT_WHEN_COLD:
                return "cold", resident
            self.bench.say(f"  {resident:.0%} of {folder.name} stay in memory: no cold load")
        file_cache.read_all(folder)
        return "warm", file_cache.resident_share(folder)

    def run_case(self, case: Case, loaded: dict[str, Any]) -> None:
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
                "time": now(),
            }
        )
