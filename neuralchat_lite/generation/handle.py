"""The handle of an answer that is computed whether anybody waits for it or not."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError

from neuralchat_lite.generation.job import Job
from neuralchat_lite.generation.loop import fold
from neuralchat_lite.generation.scheduler import Scheduler
from neuralchat_lite.generation.sequence import Piece, Reply
from neuralchat_lite.generation.sequence import Sequence as One
from neuralchat_lite.generation.text import Detokenizer


class Handle:
    """An answer on its way, for threads and for asyncio. Made by `Model.submit`.

        handle = model.submit(prompt)
        reply = handle.result()               # wait for all of it
        for piece in handle: ...              # or for each piece
        reply = await handle                  # the same in asyncio
        async for piece in handle: ...

    Each of them may be used as often as you like, and begins with the first piece. What has ended
    the answer early is raised by all of them, when its pieces are through. The pieces of one that
    was cancelled just end, and it has no result.
    """

    def __init__(self, scheduler: Scheduler, sequence: One) -> None:
        self._scheduler = scheduler
        self._job: Job = scheduler.submit(sequence)

    @property
    def done(self) -> bool:
        """Whether nothing more comes."""
        return self._job.left

    @property
    def cancelled(self) -> bool:
        return self._job.unwanted and not self._job.sequence.finished

    @property
    def age_s(self) -> float:
        """Seconds since it was submitted."""
        return time.perf_counter() - self._job.arrived

    @property
    def queued_s(self) -> float:
        """Seconds of them in which it had to wait for others to end."""
        admitted = self._job.admitted
        return self.age_s if admitted is None else admitted - self._job.arrived

    @property
    def prompt_tokens(self) -> int:
        return self._job.sequence.prompt_tokens

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return self._job.sequence.prompt.ids

    def token_name(self, token_id: int) -> str:
        """The text of a token, or its name if it is special."""
        return self._job.sequence.text_of.name(token_id)

    def token_bytes(self, token_id: int) -> bytes | None:
        """Those of a token alone, which may be a part of a character; None where they cannot be
        told."""
        return self._job.sequence.text_of.bytes_of(token_id)

    def detokenizer(self) -> Detokenizer:
        """A new one: what makes text of tokens, from the first."""
        return Detokenizer(self._job.sequence.tokenizer)

    def cancel(self) -> None:
        """End the answer at the next step; returns at once, from any thread. Does nothing when it
        has ended."""
        if not self._job.left:
            self._job.unwanted = True

    def result(self) -> Reply:
        """Wait for the whole answer. Raises what has ended it, CancelledError (that of
        concurrent.futures) when it was cancelled."""
        pieces = list(self)
        if not self._job.sequence.finished:
            raise CancelledError("this answer was cancelled, so it has no result")
        return fold(pieces)

    def __iter__(self) -> Iterator[Piece]:
        job, taken = self._job, 0
        while True:
            self._scheduler.drive([job], lambda: len(job.pieces) > taken or job.left)  # noqa: B023
            if taken == len(job.pieces):
                if job.error is not None:
                    raise job.error
                return
            yield job.pieces[taken]
            taken += 1

    def __await__(self) -> Generator[None, None, Reply]:
        return self._whole().__await__()

    async def _whole(self) -> Reply:
        async for _ in self:
            pass
        return self.result()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        async with contextlib.aclosing(pieces_of([self])) as pieces:
            async for _, piece in pieces:
                yield piece


async def pieces_of(handles: Sequence[Handle]) -> AsyncGenerator[tuple[int, Piece], None]:
    """(which handle, a piece of its answer), as they come, in asyncio. Raises the first error."""
    async with contextlib.aclosing(pieces_or_ticks(handles)) as found:
        async for item in found:
            if item is not None:
                yield item


class Bell:
    """Wakes the coroutines of one event loop that wait for pieces: all of them at once, since most
    answers go on in each step, and to call into another thread's loop costs a system call."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.waiting: set[asyncio.Event] = set()

    def ring(self) -> None:
        """From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
            self.loop.call_soon_threadsafe(self.wake)

    def wake(self) -> None:
        for event in self.waiting:
            event.set()


_bells: dict[asyncio.AbstractEventLoop, Bell] = {}  # of loops in which somebody waits


async def pieces_or_ticks(
    handles: Sequence[Handle], every: float | None = None, whole: bool = False
) -> AsyncGenerator[tuple[int, Piece] | None, None]:
    """As `pieces_of`, and None when nothing has come between two ticks of a clock.

    every: seconds between the ticks; None: no ticks
    whole: let the pieces of each answer come when it has ended, for those who wait for all of it
    """
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    bell = _bells.setdefault(loop, Bell(loop))
    jobs = [handle._job for handle in handles]
    ticks = 0
    timer: asyncio.TimerHandle | None = None

    def start_clock() -> None:
        nonlocal timer
        if every is not None:
            timer = loop.call_later(every, tick)

    def tick() -> None:
        nonlocal ticks
        ticks += 1
        told.set()
        start_clock()

    def listeners(job: Job) -> list[Callable[[], None]]:
        return job.enders if whole else job.listeners

    for job in jobs:
        listeners(job).append(bell.ring)
    bell.waiting.add(told)
    start_clock()
    try:
        ticked = 0  # when a piece came last, or nothing had for a tick
        taken = dict.fromkeys(range(len(jobs)), 0)
        while taken:
            told.clear()
            for index, job in enumerate(jobs):
                if index not in taken:
                    continue
                ended = job.left  # asked first: no piece comes after it
                while taken[index] < len(job.pieces):
                    yield index, job.pieces[taken[index]]
                    taken[index] += 1
                    ticked = ticks
                if ended:
                    del taken[index]
                    if job.error is not None:
                        raise job.error
            if taken:
                await told.wait()
                if ticks > ticked + 1:
                    ticked = ticks - 1
                    yield None
    finally:
        if timer is not None:
            timer.cancel()
        bell.waiting.remove(told)
        if not bell.waiting:
            _bells.pop(loop, None)
        for job in jobs:
            listeners(job).remove(bell.ring)
