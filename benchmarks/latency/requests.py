"""Many requests on one engine, so many at a time; and what its own steps would allow.

As in `bench.py` engines take turns, each turn in a process of its own. A request that ends makes
room for the next one at once, where the engine has a batch that others may join.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engines.table import Variant
from benchmarks.engines.workers import LOAD_SECONDS, convert, start_worker
from benchmarks.latency.bench import turns
from benchmarks.latency.cases import Case, prompts_for
from benchmarks.models.model import Model


@dataclass(frozen=True)
class Load:
    """`requests` prompts of `context` tokens with `new_tokens` after each, `at_once` at a time."""

    requests: int
    at_once: int
    context: int
    new_tokens: int

    def prompts(self, vocab_size: int) -> list[list[int]]:
        return prompts_for(Case(self.requests, self.context, self.new_tokens, 1), vocab_size)


@dataclass(frozen=True)
class Served:
    """One turn: seconds for all requests; those that its prompts and its steps take with
    `at_once` sequences from beginning to end, measured just before."""

    variant: Variant
    seconds: float
    alone: float

    @property
    def share(self) -> float:
        return self.alone / self.seconds


def serve(
    model: Model,
    variants: Sequence[Variant],
    load: Load,
    threads: int,
    rounds: int,
    python_of: Callable[[str], Path],
    limit: float,
) -> Iterator[Served]:
    """Every engine's turn, round after round. Raises EngineError with the words of an engine."""
    prompts = load.prompts(model.architecture.vocab_size)
    for _, variant in turns(variants, rounds):
        python = python_of(variant.engine)
        if not model.is_stored(variant):
            convert(variant, model, lambda v=variant, p=python: start_worker(v, model, threads, p))  # type: ignore[misc]
        with start_worker(variant, model, threads, python) as worker:
            worker.call(
                "load",
                timeout=LOAD_SECONDS,
                folder=str(model.stored(variant)),
                options=dict(variant.options),
                threads=threads,
            )
            some = prompts[: load.at_once]
            worker.call("warm_up", timeout=limit, prompts=some)
            steps = worker.call("generate", timeout=limit, prompts=some, new_tokens=load.new_tokens)
            turn = load.requests / load.at_once
            alone = turn * steps["first_token_s"]
            alone += turn * (load.new_tokens - 1) * statistics.median(steps["step_s"])
            ran = worker.call(
                "answer_all",
                timeout=limit,
                prompts=prompts,
                new_tokens=load.new_tokens,
                at_once=load.at_once,
            )
        yield Served(variant, ran["seconds"], alone)
