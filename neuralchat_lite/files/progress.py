"""Progress reports of long operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from neuralchat_lite.files.digests import HashProgress


@dataclass(frozen=True)
class Progress:
    """How far a long operation is.

    stage: "hash" (the source's files), "wait" (for another process), "calibrate", "quantize",
        "merge", "export", "verify", "measure", or "generate" (answers to several prompts)
    name: the tensor or file being worked on
    done, total: bytes; of "generate", answers
    """

    stage: str
    name: str
    done: int
    total: int


ProgressCallback = Callable[[Progress], None]


def size_text(count: float) -> str:
    """Bytes as people read them, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def hashing(progress: ProgressCallback | None, stage: str = "hash") -> HashProgress | None:
    """A callback for functions that hash files."""
    if progress is None:
        return None
    return lambda name, done, total: progress(Progress(stage, name, done, total))
