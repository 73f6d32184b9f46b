"""Native work that calls itself deeply, on a stack that is large enough.

The stack of a thread has 8 MiB as a rule, or less. Where native code runs over its end, the system
ends the whole process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PAGES = 1 << 16  # bytes; the size of a stack is a whole number of them on every system
starting = threading.Lock()


def with_stack(size: int, act: Callable[[], T]) -> T:
    """What `act` returns or raises, done in a thread whose stack has `size` bytes at least. They
    become memory when they are used. RuntimeError when the system refuses them."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(act())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="neuralchat_lite deep", daemon=True)
    with starting:  # the size is said for all threads that start from then on
        usual = threading.stack_size(-(-size // PAGES) * PAGES)
        try:
            thread.start()
        finally:
            threading.stack_size(usual)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
