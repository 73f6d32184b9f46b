"""What the system refuses (memory, threads, processes) as one error of ours, with the remedy.

It shows in many ways: a MemoryError, torch's RuntimeError, an ImportError of a library that cannot
be mapped, a panic of tokenizers. `shortages` stands around whatever the public functions do.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Collection, Iterator

from neuralchat_lite.errors import NeuralchatError, ResourceError

# What others say in their errors when the system refuses something, in lower case -> the remedy.
MEMORY = (
    "close other programs, raise the limit (`ulimit -v`, a container's memory), or use a smaller "
    "model or context_length"
)
THREADS = (
    "raise the limit of threads and processes (`ulimit -u`, a container's pids) or of memory "
    "(`ulimit -v`, their stacks), or use fewer threads (threads=1, NEURALCHAT_LITE_THREADS=1, "
    "TOKENIZERS_PARALLELISM=false)"
)
SHORTAGES = {
    "start new thread": ("a thread", THREADS),
    "threadpoolbuilderror": ("a thread", THREADS),
    "resource temporarily unavailable": ("a thread or process", THREADS),
    "cannot allocate memory": ("memory", MEMORY),
    "can't allocate memory": ("memory", MEMORY),
    "not enough memory": ("memory", MEMORY),
    "unable to mmap": ("memory", MEMORY),
    "failed to map segment": ("memory", MEMORY),  # of a library that is imported
    "bad_alloc": ("memory", MEMORY),
}


REFUSALS = (errno.ENOMEM, errno.EAGAIN)  # the second of a new process


def shortage(error: BaseException, errnos: Collection[int] = REFUSALS) -> ResourceError | None:
    """The error to raise instead of one by which somebody says that the system refused memory, a
    thread or a process; None for all others. torch, the system's loader, Python and tokenizers
    each have a type of their own for it."""
    said = " ".join(str(error).split())
    kinds = (MemoryError, RuntimeError, ImportError)
    if isinstance(error, NeuralchatError):
        return None
    if isinstance(error, OSError) and not isinstance(error, MemoryError):
        if error.errno not in errnos:
            return None
    # tokenizers' PanicException is no Exception.
    elif not isinstance(error, kinds) and type(error).__name__ != "PanicException":
        return None
    rows = (row for text, row in SHORTAGES.items() if text in said.lower())
    default = ("memory", MEMORY) if isinstance(error, MemoryError) else None
    what, remedy = next(rows, default) or (None, None)
    if what is None:
        return None
    return ResourceError(
        f"the system refused {what} ({said[:200] or type(error).__name__}): {remedy}"
    )


@contextlib.contextmanager
def shortages(errnos: Collection[int] = REFUSALS) -> Iterator[None]:
    """Raises ResourceError where the system refuses memory, a thread or a process.

    errnos: of the OSErrors that mean it. A terminal may say EAGAIN for a reason of its own.
    """
    try:
        yield
    except BaseException as error:
        ours = shortage(error, errnos)
        if ours is None:
            raise
        raise ours from error
