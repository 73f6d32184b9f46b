"""Work that may be called off between two blocks: a check that its thread's decoder asks.

A prompt goes through the layers block by block. Whoever feeds one sets a check, and the decoder
asks it before each block, however deep it lies below its caller (in transformers' `generate`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Check = Callable[[], bool]  # whether to stop
_check: ContextVar[Check | None] = ContextVar("check", default=None)


class Interrupted(Exception):
    """Raised by a decoder between two blocks; its cache holds the blocks before. It never reaches
    the user: who sets a check catches it."""


@contextmanager
def interrupted_by(check: Check) -> Iterator[None]:
    """Decoders that this thread calls stop between two blocks once `check` is true."""
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


def between_blocks() -> None:
    """Called by a decoder before each block. Raises Interrupted."""
    check = _check.get()
    if check is not None and check():
        raise Interrupted
