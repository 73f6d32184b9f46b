"""Cases run in a forked worker, which a crash or a hang may take with it.

The worker imports nothing anew and answers over a pipe; the runner kills it past the limit and
starts another one with the next case. Its address space is bounded, so a folder that asks for
gigabytes is a MemoryError of that case.
"""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..patience import patience
from .outcome import FAULTS, LIBRARY, ORACLE, Attack, Case, Outcome, foreign

# Seconds of a phase, on a quick machine with nothing else to do.
LIMITS = {"mutating": 60.0, LIBRARY: 5.0, ORACLE: 60.0}
MEMORY = 2 << 30  # bytes of address space beyond what the runner has


@dataclass
class Result:
    seed: int
    done: list[str]
    outcome: Outcome


@dataclass
class Figures:
    """Outcomes of an attack, counted."""

    kinds: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    faults: list[Result] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, result: Result) -> None:
        self.kinds[result.outcome.kind] += 1
        if result.outcome.kind == "refused":
            self.refusals[result.outcome.what] += 1
        if result.outcome.kind in FAULTS:
            self.faults.append(result)

    @property
    def cases(self) -> int:
        return sum(self.kinds.values())


def run_cases(
    attack: Attack, seeds: Iterable[int], place: Path, limit: float = LIMITS[LIBRARY]
) -> Iterator[Result]:
    """The result of each seed. `attack` must be prepared; `place` is emptied after each case."""
    waiting = iter(seeds)
    for seed in waiting:
        worker = Worker(attack, place, {**LIMITS, LIBRARY: limit})
        try:
            while True:
                result, alive = worker.run(seed)
                yield result
                if not alive or (seed := next(waiting, None)) is None:
                    break
        finally:
            worker.end()


class Worker:
    """A fork of this process that runs cases one after the other."""

    def __init__(self, attack: Attack, place: Path, limits: Mapping[str, float]) -> None:
        self.limits = limits
        orders, self.orders = os.pipe()
        self.answers, answers = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.orders)
            os.close(self.answers)
            try:
                serve(attack, place, orders, answers)
            finally:
                os._exit(0)
        os.close(orders)
        os.close(answers)
        self.received = b""

    def run(self, seed: int) -> tuple[Result, bool]:
        """A case's result, and whether the worker is alive after it."""
        os.write(self.orders, f"{seed}\n".encode())
        done: list[str] = []
        phase = "mutating"
        while True:
            answer = self.answer(self.limits[phase])
            if answer is None:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self.pid = 0
                late = (
                    Outcome("right", "not judged in time") if phase == ORACLE else Outcome("hang")
                )
                return Result(seed, done, late), False
            if not answer:
                _, status = os.waitpid(self.pid, 0)
                self.pid = 0
                how = signal.Signals(status & 127).name if status & 127 else f"exit code {status}"
                return Result(seed, done, Outcome("crash", how)), False
            done = answer["done"]
            if "kind" in answer:
                outcome = Outcome(answer["kind"], answer["what"], answer["detail"])
                return Result(seed, done, outcome), True
            phase = answer["phase"]

    def answer(self, limit: float) -> dict[str, Any] | None:
        """The next message: {} when the worker has died, None when it takes too long."""
        start, measured = time.perf_counter(), False
        while b"\n" not in self.received:
            left = start + limit - time.perf_counter()
            if left <= 0:
                if measured:
                    return None
                # A busy machine may take longer. How much longer is measured only now.
                measured, limit = True, patience(limit)
            elif select.select([self.answers], [], [], left)[0]:
                piece = os.read(self.answers, 1 << 16)
                if not piece:
                    return {}
                self.received += piece
        line, _, self.received = self.received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def end(self) -> None:
        os.close(self.orders)
        os.close(self.answers)
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def serve(attack: Attack, place: Path, orders: int, answers: int) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    bound_memory()
    os.fsync = lambda descriptor: None  # type: ignore[assignment]  # power cuts are not attacked

    def say(**message: Any) -> None:
        os.write(answers, json.dumps(message).encode() + b"\n")

    with os.fdopen(orders) as lines:
        for line in lines:
            seed = int(line)
            outcome, done = run_case(attack, seed, place, say)
            what = vars(outcome)
            say(done=[text[:300] for text in done], **what)


def run_case(
    attack: Attack, seed: int, place: Path, say: Callable[..., None]
) -> tuple[Outcome, list[str]]:
    """One case in this process."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    case = Case(seed, place, lambda phase: say(phase=phase, done=[t[:300] for t in case.done]))
    try:
        return attack.run(case), case.done
    except BaseException as error:  # the attack itself is at fault
        return Outcome("wrong", "the attack failed", foreign(error).what + f": {error}"), case.done


def bound_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def fuzz(
    attacks: dict[str, Attack],
    root: Path,
    *,
    cases: int | None,
    seconds: float | None,
    seed: int,
    limit: float,
) -> dict[str, Figures]:
    """Run `cases` of each attack from a seed on, or all in turn for so many seconds."""
    figures = {name: Figures() for name in attacks}
    end = None if seconds is None else time.perf_counter() + seconds
    batch = 25 if cases is None else cases
    for name, attack in attacks.items():
        attack.prepare(root / f"base-{name}")
    first = seed
    while True:
        for name, attack in attacks.items():
            start = time.perf_counter()
            place = root / f"case-{name}"
            for result in run_cases(attack, range(first, first + batch), place, limit):
                figures[name].add(result)
                if end is not None and time.perf_counter() > end:
                    break
            figures[name].seconds += time.perf_counter() - start
        first += batch
        if end is None or time.perf_counter() > end:
            return figures
