"""A sequence in the scheduler: what it is fed, and its pieces that nobody has taken yet."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from neuralchat_lite.generation.prefix_store import page_digests
from neuralchat_lite.generation.sequence import Piece, Sequence

_numbers = itertools.count()
T = TypeVar("T")


class Errand(Generic[T]):
    """Something that is done between two steps.

    results: what it returned, when `left`; error: what it raised
    """

    def __init__(self, act: Callable[[], T]) -> None:
        self.act = act
        self.results: list[T] = []
        self.error: BaseException | None = None
        self.left = False
        self.wakes: list[threading.Event] = []

    def run(self) -> None:
        try:
            self.results.append(self.act())
        except Exception as error:
            self.error = error
        finally:
            self.left = True
            for wake in list(self.wakes):
                wake.set()


class Job:
    """One sequence, from its arrival until it has ended or nobody wants it.

    number: in the order of arrival
    cancelled: asked before each step; the sequence then leaves
    ahead: pieces to compute at most before somebody takes them; None: all
    pieces: those that nobody has taken
    error: why it ended early
    left: whether it takes part in no step any more
    stored: full pages of it that are remembered
    process: in which it was added
    arrived, admitted: when (time.perf_counter); None until it may take part in steps
    """

    def __init__(
        self,
        sequence: Sequence,
        cancelled: Callable[[], bool] | None = None,
        ahead: int | None = None,
    ) -> None:
        self.number = next(_numbers)
        self.sequence = sequence
        self.cancelled = cancelled or (lambda: False)
        self.ahead = ahead
        self.pieces: deque[Piece] = deque()
        self.drafted: list[int] = []  # what the next step feeds beside `next_ids`
        self.error: BaseException | None = None
        self.unwanted = False
        self.left = False
        # Set and called after a step that has left something to take; once it has left, `enders`.
        self.wakes: list[threading.Event] = []
        self.listeners: list[Callable[[], None]] = []
        self.enders: list[Callable[[], None]] = []
        self.digests: list[bytes] = []
        self.stored = 0
        self.process = 0
        self.arrived = time.perf_counter()
        self.admitted: float | None = None

    @property
    def ready(self) -> bool:
        """Whether whoever takes its pieces need not wait."""
        return bool(self.pieces) or self.left

    @property
    def wants(self) -> bool:
        """Whether it takes part in the next step."""
        return self.ahead is None or len(self.pieces) < self.ahead

    def is_cancelled(self) -> bool:
        return self.unwanted or self.cancelled()

    def full_pages(self) -> list[bytes]:
        """The digests of all full pages of its tokens."""
        self.digests = page_digests(self.sequence.ids, self.digests)
        return self.digests

    def leave(self, error: BaseException | None = None) -> None:
        """It takes part in no step any more."""
        self.error = error
        self.left = True


def tell(jobs: Iterable[Job]) -> None:
    """Let those know who wait for something of these jobs, each of them once."""
    listeners: dict[Callable[[], None], None] = {}
    for job in jobs:
        for wake in list(job.wakes):
            wake.set()
        listeners |= dict.fromkeys(job.listeners)
        if job.left:
            listeners |= dict.fromkeys(job.enders)
    for listener in listeners:
        listener()
