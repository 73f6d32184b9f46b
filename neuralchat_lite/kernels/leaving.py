"""The end of the process while other threads still compute: they are held, and it ends.

Daemon threads go on when the main thread leaves. An operation that comes back when the interpreter
is gone aborts the process (before Python 3.14), ours and torch's alike. So when the process ends,
our operations hold every other thread for ever, and the process waits until all threads that are
`at_work` are held or done: what they do between two of our operations is done by torch.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from neuralchat_lite.kernels import _native

WAIT_SECONDS = 10.0  # at most: a reference engine may take as long for one step
_at_work: dict[int, int] = {}  # thread -> how many `at_work` it is in
os.register_at_fork(after_in_child=_at_work.clear)


@contextmanager
def at_work() -> Iterator[None]:
    """This thread computes, with our operations or with torch's. May be nested."""
    _native.hold_if_leaving()
    thread = threading.get_ident()
    _at_work[thread] = _at_work.get(thread, 0) + 1
    try:
        yield
    finally:
        _at_work[thread] -= 1
        if not _at_work[thread]:
            del _at_work[thread]


def leave() -> None:
    """Hold all other threads that are at work. Called when the process ends."""
    _native.leave()
    deadline = time.monotonic() + WAIT_SECONDS
    here = threading.get_ident()
    while set(_at_work) - {here, *_native.held_threads()} and time.monotonic() < deadline:
        time.sleep(0.001)


atexit.register(leave)
