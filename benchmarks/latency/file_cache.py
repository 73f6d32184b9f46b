"""Files in and out of the page cache, so that a cold load can be told from a warm one."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np


def files_in(folder: Path) -> list[Path]:
    """Those of a folder, or a file that is a model by itself."""
    if folder.is_file():
        return [folder]
    return sorted(path for path in folder.rglob("*") if path.is_file())


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in files_in(folder))


def drop(folder: Path) -> float:
    """Ask the kernel to drop a folder's files from memory. Returns the share of pages that stay.

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
    flags = [resident_pages(path) for path in files_in(folder) if path.stat().st_size]
    return float(np.concatenate(flags).mean()) if flags else 0.0


def resident_pages(path: Path) -> np.ndarray:
    """[pages] bool, by mincore(2)."""
    size = path.stat().st_size
    flags = np.zeros(-(-size // mmap.PAGESIZE), dtype=np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    # ACCESS_COPY: ctypes takes addresses of writable buffers only. Nothing is written.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        failed = libc.mincore(
            ctypes.c_void_p(ctypes.addressof(start)),
            ctypes.c_size_t(size),
            ctypes.c_void_p(flags.ctypes.data),
        )
        number = ctypes.get_errno()
        del start  # or the mapping could not be closed
    if failed:
        raise OSError(number, os.strerror(number), str(path))
    return (flags & 1).astype(bool)
