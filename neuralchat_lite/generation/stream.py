"""An answer as it comes, and the handle by which any thread ends it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import Generic

from typing_extensions import TypeVar

from neuralchat_lite.generation.sequence import Piece

T = TypeVar("T", default=Piece)


class Stream(Iterator[T], Generic[T]):
    """The pieces of an answer. Nothing is computed until the first is asked for.

        with model.stream(prompt) as pieces:
            for piece in pieces:
                ...

    `cancel` ends it from any thread, also while another thread waits for a piece: that thread's
    loop then ends as after the last piece, at the latest after one block of the prompt or one
    token. `close`, and leaving the `with`, cancel too.
    """

    def __init__(self, make: Callable[[Callable[[], bool]], Generator[T, None, None]]) -> None:
        """make: given whether it is cancelled, yields the pieces"""
        self._cancelled = threading.Event()
        # Held by the thread that computes. A signal handler of that thread may come in again.
        self._turn = threading.RLock()
        self._pieces = make(self._cancelled.is_set)

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """End the answer; returns at once, from any thread and as often as you like."""
        self.close()

    def close(self) -> None:
        """The same as `cancel`. In the thread that reads the pieces, all is freed on return."""
        self._cancelled.set()
        if self._turn.acquire(blocking=False):  # else the thread that computes closes
            try:
                with contextlib.suppress(ValueError):  # a signal handler, while it computes
                    self._pieces.close()
            finally:
                self._turn.release()

    def __next__(self) -> T:
        try:
            with self._turn:
                return next(self._pieces)
        finally:
            if self._cancelled.is_set():
                self.close()

    def __enter__(self) -> Stream[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
