"""One scheduler for all sequences of a model, whichever threads ask for them.

Whoever waits for a piece runs steps, for everybody; while one thread does, the others wait to be
woken. So a sequence that is alone costs no change of threads. Sequences that nobody waits for
(`submit`) have a thread of their own, which lives as long as there are some.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Generator
from dataclasses import asdict
from typing import Any, TypeVar
from weakref import WeakSet

from neuralchat_lite.engines.engine import Decoder
from neuralchat_lite.generation.batch import Batch, Limits
from neuralchat_lite.generation.freed_memory import FreedMemory
from neuralchat_lite.generation.job import Errand, Job
from neuralchat_lite.generation.sequence import Piece, Sequence
from neuralchat_lite.kernels.leaving import at_work

T = TypeVar("T")
# Pieces of a stream that are computed beside others' before its reader asks for them. A reader that
# stops reading holds up nobody, and costs no more than these.
AHEAD = 8


class Scheduler:
    def __init__(self, decoder: Decoder, limits: Limits | None = None) -> None:
        self.batch = Batch(decoder, limits or Limits())
        self.freed = FreedMemory()
        self.begin()
        _schedulers.add(self)

    def begin(self) -> None:
        """With no thread and no sequence; also in the child of a fork, where those of the parent
        stay with it."""
        self.process = os.getpid()
        # A signal handler, or a stream that is collected, may come in again.
        self.lock = threading.RLock()
        self.driver: object | None = None  # of the thread that runs steps
        self.driving_thread = 0
        self.blocked: dict[threading.Event, None] = {}  # of those who wait for others' steps
        self.submitted: list[Job] = []
        self.thread: threading.Thread | None = None
        self.batch.arrivals.clear()
        self.batch.errands.clear()
        self.batch.changed.clear()
        self.batch.running.clear()
        self.batch.waiting.clear()

    def add(self, job: Job) -> None:
        job.process = self.process
        job.sequence.clock.resume()
        self.batch.arrivals.append(job)

    def pieces(
        self, sequence: Sequence, cancelled: Callable[[], bool]
    ) -> Generator[Piece, None, None]:
        """The pieces of a sequence as they come; it joins when the first is asked for."""
        job = Job(sequence, cancelled, AHEAD)
        self.add(job)
        try:
            while (piece := self.next_piece(job)) is not None:
                yield piece
        finally:
            self.release(job)

    def next_piece(self, job: Job) -> Piece | None:
        """The next piece of a job, None when there is none. Raises what has ended it."""
        self.drive([job], lambda: job.ready)
        if job.pieces:
            return job.pieces.popleft()
        if job.error is not None:
            raise job.error
        return None

    def submit(self, sequence: Sequence) -> Job:
        """Compute a sequence to its end, whether anybody waits for it or not."""
        job = Job(sequence)
        self.add(job)
        with self.lock:
            self.submitted.append(job)
            if self.thread is None:
                self.thread = threading.Thread(
                    target=self.run_submitted, name="neuralchat_lite", daemon=True
                )
                self.thread.start()
        return job

    def run_submitted(self) -> None:
        """The life of the thread for those that nobody waits for."""
        while True:
            try:
                self.drive([], lambda: all(job.left for job in self.submitted))
            except BaseException:
                self.thread = None  # the next one that is submitted starts another
                raise
            with self.lock:
                self.submitted = [job for job in self.submitted if not job.left]
                if not self.submitted:
                    self.thread = None
                    return

    def between_steps(self, act: Callable[[], T]) -> T:
        """Let something be done while no step is computed, and wait for it."""
        errand = Errand(act)
        self.batch.errands.append(errand)
        self.drive([errand], lambda: errand.left)
        if errand.error is not None:
            raise errand.error
        return errand.results[0]

    def drive(self, jobs: Collection[Job | Errand[Any]], ready: Callable[[], bool]) -> None:
        """Return once `ready()`. This thread runs steps while no other does.

        jobs: what it waits for; if none, it is only there to run steps
        """
        wake = threading.Event()
        for job in jobs:
            job.wakes.append(wake)
        try:
            while not ready():
                for job in jobs:
                    if isinstance(job, Job) and job.process != self.process and not job.left:
                        self.add(job)  # after a fork
                self.drive_or_wait(wake, ready)
        finally:
            for job in jobs:
                job.wakes.remove(wake)

    def drive_or_wait(self, wake: threading.Event, ready: Callable[[], bool]) -> None:
        mine = object()
        try:
            with self.lock:
                if self.driver is None:
                    self.driver, self.driving_thread = mine, threading.get_ident()
                else:
                    wake.clear()
                    self.blocked[wake] = None
            if self.driver is mine:
                self.run_steps(ready)
            elif not ready():
                wake.wait()
        finally:
            with self.lock:
                self.blocked.pop(wake, None)
                if self.driver is mine:
                    self.driver = None
                self.wake_next()

    def run_steps(self, ready: Callable[[], bool]) -> None:
        start = time.perf_counter()
        with at_work():
            self.batch.sort_out()
            self.batch.tell()
            while not ready():
                fed = self.batch.step()
                # One may have arrived since the step let arrivals in.
                idle = not (fed or ready() or self.batch.arrivals)
                assert not idle, "somebody waits, and nothing is to be computed"
            self.freed.worked_s += time.perf_counter() - start
            if self.batch.is_empty():
                self.freed.give_back()

    def describe(self) -> dict[str, Any]:
        """For reports: what it has done, and what it holds now (bytes)."""
        batch = self.batch
        held = (
            {}
            if batch.pool is None
            else {"kv_bytes": batch.pool.nbytes, "kv_memory": batch.kv_bytes}
        )
        return {
            **asdict(batch.counts),
            "running": len(batch.running),
            "waiting": len(batch.waiting) + len(batch.arrivals),
            **held,
        }

    def wake_next(self) -> None:
        """If nobody runs steps, let one of those who wait do it."""
        if self.driver is None and self.blocked:
            next(iter(self.blocked)).set()

    def release(self, job: Job) -> None:
        """Nobody wants the pieces of a job any more. A cache that others go on with is theirs when
        this returns."""
        job.unwanted = True
        busy = self.driver is not None
        if busy and (job.sequence.own_cache or self.driving_thread == threading.get_ident()):
            return  # it leaves before the next step
        self.drive([job], lambda: job.left)


_schedulers: WeakSet[Scheduler] = WeakSet()


def begin_child() -> None:
    for scheduler in list(_schedulers):
        scheduler.begin()


os.register_at_fork(after_in_child=begin_child)
