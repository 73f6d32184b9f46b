"""A folder written whole or not at all, however its process ends.

Everything is written to a temporary folder beside the destination, flushed to the disk and
renamed, so at no moment is there half a model under the final name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped,unused-ignore]

from neuralchat_lite.errors import CacheError


@dataclass(frozen=True)
class Estimate:
    """What quantizing or merging takes.

    disk_bytes: the size of the finished folder, exact to its two small JSON files
    memory_bytes: the most that is held at a time, beyond mapped files
    work: what it is called in errors
    """

    disk_bytes: int
    memory_bytes: int
    work: str = "quantizing"

    def require(self, folder: Path) -> None:
        """Raise CacheError with the figures unless the machine has them. `folder` must exist."""
        free = shutil.disk_usage(folder).free
        if free < self.disk_bytes:
            raise CacheError(
                f"{self.work} needs {gigabytes(self.disk_bytes)} in {folder}, {gigabytes(free)} "
                "are free: make room, choose another output folder, or set NEURALCHAT_LITE_CACHE "
                "to a larger disk"
            )
        available = psutil.virtual_memory().available
        if available < self.memory_bytes:
            raise CacheError(
                f"{self.work} needs {gigabytes(self.memory_bytes)} of memory, "
                f"{gigabytes(available)} are available: close other programs"
            )


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB"


def temporary_beside(out: Path) -> Path:
    """A name for the unfinished folder; what killed processes left under such names goes."""
    prefix = f".tmp-{out.name}-"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for leftover in out.parent.glob(f"{prefix}*"):  # of a process that was killed
            pid = leftover.name.removeprefix(prefix)
            if pid.isdigit() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(leftover, ignore_errors=True)
    except OSError as error:
        raise unwritable(out, error) from None
    return out.parent / f"{prefix}{os.getpid()}"


def require_empty(out: Path) -> None:
    """Raise CacheError unless a folder is new or empty."""
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise unwritable(out, error) from None
    if taken:
        raise CacheError(
            f"{out} exists and is not an empty folder: choose another one, or remove it first"
        )


@contextlib.contextmanager
def whole_folder(temporary: Path, out: Path) -> Iterator[None]:
    """Make `temporary`, to be filled, and at the end rename it to `out`; if anything fails,
    remove it."""
    try:
        temporary.mkdir()  # what is there already is somebody else's, and stays
    except OSError as error:
        raise unwritable(out, error) from error
    try:
        yield
        flush_folder(temporary)
        temporary.rename(out)
        flush_folder(out.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, CacheError):
            raise unwritable(out, error) from error
        raise


def unwritable(out: Path, error: OSError) -> CacheError:
    return CacheError(
        f"{out} cannot be written ({error.strerror or error}): make room or check permissions, "
        "set NEURALCHAT_LITE_CACHE to another folder, or write to a folder of your choice "
        "(`neuralchat-lite quantize MODEL -o FOLDER`, or merge)"
    )


def write_flushed(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot, and need not
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
