"""Files in and out of the page cache, so that a cold load can be told from a warm one."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in files_in(folder))


def drop(folder: Path) -> float:
    """Ask the kernel to forget a folder's files; the share of their pages that it still holds.

    Needs no rights. Pages that a process has mapped, or that are not yet on the disk, stay.
    """
    for path in files_in(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return resident_share(folder)


def read_all(folder: Path) -> None:
    """Read every file once, so that the next load finds them in memory."""
    for path in files_in(folder):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def resident_share(folder: Path) -> float:
    """The share of a folder's pages that are in memory."""
    pages = [flag for path in files_in(folder) for flag in resident_pages(path)]
    return sum(pages) / len(pages) if pages else 0.0


def resident_pages(path: Path) -> Iterator[int]:
    size = path.stat().st_size
    if size == 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    count = -(-size // mmap.PAGESIZE)
    flags = (ctypes.c_ubyte * count)()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        # ACCESS_COPY: ctypes takes addresses of writable buffers only. Nothing is written.
        start = ctypes.c_char.from_buffer(mapped)
        failed = libc.mincore(ctypes.addressof(start), ctypes.c_size_t(size), flags)
        number = ctypes.get_errno()
        del start
        if failed:
            raise OSError(number, os.strerror(number), str(path))
    yield from (flag & 1 for flag in flags)
