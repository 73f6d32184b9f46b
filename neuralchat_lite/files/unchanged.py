"""A file that must not change while it is used: opened once, and remembered as it was then.

What is hashed and what is read must be the same bytes, also when somebody writes to the file or
puts another one under its name meanwhile. So both go through one descriptor, and what the file was
like when it was opened is compared with what it is like later.
"""

from __future__ import annotations

import os
import time
import weakref
from dataclasses import dataclass
from pathlib import Path

from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.files.regular import open_regular, read_whole, remedy_of

# The clock of file times has ticks of up to 10 ms. A file that was written in the present tick can
# be written again without another time.
TICK_NS = 20_000_000
LOOKS = 50
SMALL_LIMIT = 256 << 20  # of a file beside the weights; the largest tokenizers have 40 MB


@dataclass(frozen=True)
class Fingerprint:
    """Changes whenever the contents do: any write sets ctime, which no program can set back."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> Fingerprint:
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class UnchangedFile:
    """A regular file that stays open, and its fingerprint.

    limit: the most bytes that it may have
    Raises CheckpointError when it cannot be opened, is larger, or is being written.
    """

    def __init__(self, path: Path, limit: int | None = None) -> None:
        self.path = path
        try:
            self.descriptor = open_regular(path, limit)
        except OSError as error:
            raise unreadable(path, error) from None
        weakref.finalize(self, os.close, self.descriptor)
        self.fingerprint = self.settled()

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def size(self) -> int:
        return self.fingerprint.size

    def read(self) -> bytes:
        """The whole of a small file, as it was when it was opened."""
        try:
            data = read_whole(self.descriptor, SMALL_LIMIT)
        except OSError as error:
            raise unreadable(self.path, error) from None
        self.require_unchanged()
        return data

    def require_unchanged(self) -> None:
        """Raise CheckpointError when the file was written since it was opened, or another one has
        its name."""
        try:
            named = Fingerprint.of(self.path.stat())
        except OSError:
            named = None
        if not self.fingerprint == Fingerprint.of(os.fstat(self.descriptor)) == named:
            raise CheckpointError(
                f"{self.path} has changed since it was opened: wait until it is complete, then "
                "try again"
            )

    def settled(self) -> Fingerprint:
        """The fingerprint, once it is so old that a further write would show in it."""
        for _ in range(LOOKS):
            found = os.fstat(self.descriptor)
            age = time.time_ns() - found.st_ctime_ns
            if not 0 <= age < TICK_NS:  # below 0: the clock of another machine
                return Fingerprint.of(found)
            time.sleep((TICK_NS - age) / 1e9)
        raise CheckpointError(
            f"{self.path} is being written: wait until it is complete, then try again"
        )


def unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read ({error.strerror}): {remedy_of(error)}")
