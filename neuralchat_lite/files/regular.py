"""Regular files, opened without waiting and read to a bound.

A model folder may come from anyone. A named pipe under the name of a file would make its reader
wait for ever, and a device would never end. So only regular files are opened, and a file that is
read whole has a largest size.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# Of errors of the operating system; for all others permissions are to be checked.
REMEDIES = {
    errno.ENOENT: "download it again, or check the path",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "remove links that lead in a circle",
    errno.ENOTDIR: "check the path, a file is in the place of a folder",
    errno.EMFILE: "allow more open files (`ulimit -n`)",
    errno.ENFILE: "close other programs",
    errno.EIO: "check the disk, and copy the file again",
}


class UnfitFileError(OSError):
    """A file that is not opened, or not read whole, though the operating system would do it.

    strerror: what it is, and what was expected
    remedy: what to do
    """

    def __init__(self, code: int, why: str, remedy: str) -> None:
        super().__init__(code, why)
        self.remedy = remedy


def remedy_of(error: OSError) -> str:
    if isinstance(error, UnfitFileError):
        return error.remedy
    return REMEDIES.get(error.errno or 0, "check permissions")


def open_regular(path: Path, limit: int | None = None) -> int:
    """A descriptor of a regular file, to be closed by the caller.

    limit: the most bytes that it may have
    Raises OSError.
    """
    try:
        before = path.stat()  # opening may act on a device
        if not stat.S_ISREG(before.st_mode):
            raise not_regular(before)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except ValueError:  # the operating system is not asked for such names
        raise UnfitFileError(
            errno.EINVAL, "its name has a zero byte or half a character", "give another name"
        ) from None
    except FileNotFoundError:
        if path.is_symlink():
            raise UnfitFileError(
                errno.ENOENT,
                f"it is a link to {path.readlink()}, where nothing is",
                "put the file there, or remove the link",
            ) from None
        raise
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):  # exchanged meanwhile
        os.close(descriptor)
        raise not_regular(found)
    if limit is not None and found.st_size > limit:
        os.close(descriptor)
        raise too_large(found.st_size, limit)
    return descriptor


def not_regular(found: os.stat_result) -> UnfitFileError:
    kind = next((name for test, name in KINDS if test(found.st_mode)), "no regular file")
    return UnfitFileError(
        errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL,
        f"it is {kind}, expected a regular file",
        "put the file of the model there",
    )


def too_large(size: int, limit: int) -> UnfitFileError:
    return UnfitFileError(
        errno.EFBIG,
        f"it has {size / 1e6:.4g} MB, at most {limit / 1e6:.4g} MB are read",
        "such files are small: download it again",
    )


def read_whole(descriptor: int, limit: int) -> bytes:
    """All bytes of an open file. Raises OSError when they are more than `limit`."""
    size = os.fstat(descriptor).st_size
    if size > limit:
        raise too_large(size, limit)
    data = b""
    while len(data) < size and (piece := os.pread(descriptor, size - len(data), len(data))):
        data += piece
    return data


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a small regular file. Raises OSError."""
    descriptor = open_regular(path)
    try:
        return read_whole(descriptor, limit)
    finally:
        os.close(descriptor)
