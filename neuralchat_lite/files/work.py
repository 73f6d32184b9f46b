"""A folder for unfinished work that a killed process leaves to the next one.

It lies beside what is being made, and its name is a digest of all that decides the result. So only
a run that would compute the same goes on with it. It is removed when the result is there.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

UNFINISHED = ".unfinished-"  # prefix of the names of these folders


@contextlib.contextmanager
def work_folder(out: Path, key: str) -> Iterator[Path]:
    """The folder for the work on `out`, made when something is written: its name is known now.

    key: a digest of all that decides the result
    One process at a time works in it; another waits. When an error or a signal ends the work, the
    folder stays.
    """
    folder = out.parent / f"{UNFINISHED}{key[:24]}"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def at_work_in(folder: Path) -> Iterator[None]:
    """Make a work folder, and hold its lock."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        yield


def unfinished_work(root: Path) -> list[Path]:
    """Work folders in a folder that nobody works in."""
    return [
        path for path in sorted(root.glob(f"{UNFINISHED}*")) if path.is_dir() and not busy(path)
    ]


def busy(folder: Path) -> bool:
    from filelock import FileLock, Timeout

    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
