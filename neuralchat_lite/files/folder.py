"""A folder written whole or not at all, however its process ends.

Everything is written to a temporary folder beside the destination, flushed to the disk and
renamed. So there is never an incomplete model under the final name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped,unused-ignore]

from neuralchat_lite.errors import CacheError, ConfigError
from neuralchat_lite.files.names import LONGEST_NAME, is_file_name
from neuralchat_lite.values import shown

TEMPORARY = ".tmp-"  # prefix of the names of unfinished folders
LONGEST_PATH = 4000  # bytes; the operating system's 4096, with room for a file's name
# Why something could not be written -> what to do.
REMEDIES = (
    ({errno.ENOSPC, errno.EDQUOT}, "make room"),
    ({errno.EACCES, errno.EPERM, errno.EROFS}, "check permissions"),
    (
        {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP},
        "its file system does not do this, so choose a folder on a local disk",
    ),
    ({errno.EEXIST, errno.ENOTDIR}, "something else is in the place of a folder, so remove that"),
    ({errno.ENAMETOOLONG}, "choose a shorter path"),
    ({errno.ELOOP}, "remove links that lead in a circle"),
    ({errno.EMFILE, errno.ENFILE}, "allow more open files (`ulimit -n`)"),
    ({errno.EIO}, "check the disk"),
)


@dataclass(frozen=True)
class Estimate:
    """Disk space and memory for quantizing or merging.

    disk_bytes: the size of the finished folder, exact but for its two small JSON files
    memory_bytes: the most memory in use at a time, beyond mapped files
    work: the name of the operation, for errors
    """

    disk_bytes: int
    memory_bytes: int
    work: str = "quantizing"

    def require(self, folder: Path) -> None:
        """Raise CacheError unless there is enough of both. `folder` must exist."""
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
def whole_folder(
    out: Path,
    needed: Estimate | None = None,
    *,
    called: str | None = None,
    keep: Sequence[str] = (),
) -> Iterator[Path]:
    """A new folder to fill. At the end it is renamed to `out`; if anything fails, it is removed.

    needed: what the work takes; CacheError when there is too little
    called: name for the temporary folder, instead of that of `out`. The caller holds a lock
        on this name, so that any folder with it was left by a process that has ended.
    keep: names of files that `out` may have already and that are kept; no others are allowed

    Temporary folders that killed processes left are removed first. Raises CacheError when `out`
    cannot be written.
    """
    prefix = f"{TEMPORARY}{called or out.name}-"
    temporary = out.parent / f"{prefix}{os.getpid()}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for leftover in unfinished_folders(out.parent, prefix, locked=called is not None):
            shutil.rmtree(leftover, ignore_errors=True)
        if needed is not None:
            needed.require(out.parent)
        temporary.mkdir()  # fails when it exists: it belongs to another process
    except OSError as error:
        if isinstance(error, CacheError):
            raise
        raise unwritable(out, error) from error
    try:
        yield temporary
        kept = [out / name for name in keep if (out / name).exists()]
        for file in kept:
            copy_flushed(file, temporary / file.name)
        flush_folder(temporary)
        for file in kept:  # rename replaces a folder only when it is empty
            file.unlink()
        temporary.rename(out)
        flush_folder(out.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, CacheError):
            raise unwritable(out, error) from error
        raise


def unfinished_folders(
    folder: Path, prefix: str = TEMPORARY, *, locked: bool = False
) -> list[Path]:
    """Unfinished folders whose processes have ended.

    prefix: of their names
    locked: the caller holds the lock, so no other process uses them, whatever their process ids
    """
    found = []
    for path in sorted(folder.iterdir()):
        pid = path.name.rpartition("-")[2]
        ours = path.name.startswith(prefix) and pid.isdecimal() and not path.is_symlink()
        if ours and path.is_dir() and (locked or not psutil.pid_exists(int(pid))):
            found.append(path)
    return found


def unwritable(out: Path, error: OSError) -> CacheError:
    remedy = next((text for codes, text in REMEDIES if error.errno in codes), "check the path")
    return CacheError(
        f"{out} cannot be written ({error.strerror or error}): {remedy}, "
        "set NEURALCHAT_LITE_CACHE to another folder, or write to a folder of your choice "
        "(`neuralchat-lite quantize MODEL -o FOLDER`, or merge)"
    )


def given_folder(given: object, name: str) -> Path:
    """A path that somebody gave for a folder to be written to; "~" is their home.

    name: what they gave it as
    Raises ConfigError for what cannot be a path.
    """
    if not isinstance(given, str | os.PathLike):
        raise ConfigError(f"{name} must be the path of a folder, got {shown(given)}: give a text")
    text = os.fspath(given)
    if not isinstance(text, str):
        raise ConfigError(f"{name} must be a text, got the bytes {text!r}: decode them")
    if not text:
        raise ConfigError(f"{name} is an empty string: give a folder, or leave it out")
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"{name} {text[:100]!r} begins with the home of a user who is not known: write the "
            "whole path"
        ) from None
    for part in path.parts:
        if part != path.anchor and part != ".." and not is_file_name(part):
            raise ConfigError(
                f"{name} has {part[:100]!r} in it, expected names of at most {LONGEST_NAME} bytes "
                "without a zero byte or half a character: give another path"
            )
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise ConfigError(
            f"{name} is a path of {len(str(path))} characters, expected at most {LONGEST_PATH} "
            "bytes: give a shorter one"
        )
    return path


def copy_flushed(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    flush_file(target)


def flush_file(path: Path) -> None:
    """Make the contents of a file survive a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_flushed(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some network file systems do not support it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
