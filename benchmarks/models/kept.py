"""Folders kept between runs: random checkpoints, and what engines make of a checkpoint.

    ROOT/NAME-DIGEST/checkpoint       a random model
    ROOT/NAME-DIGEST/ENGINE-FORMAT    a model in an engine's own format
    ROOT/NAME-DIGEST/litter           the working folder of the workers

A folder is written whole or not at all; `complete.json` in it says that it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from neuralchat_lite.errors import CacheError, ConfigError
from neuralchat_lite.files.folder import (
    flush_folder,
    whole_folder,
    write_flushed,
)

FOLDER_VARIABLE = "NEURALCHAT_LITE_BENCHMARKS"
LITTER = "litter"  # some engines leave files in the folder that they run in
COMPLETE = "complete.json"


def cache_root() -> Path:
    """Where the benchmarks keep models: $NEURALCHAT_LITE_BENCHMARKS, else the user's cache
    folder."""
    own = os.environ.get(FOLDER_VARIABLE)
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "neuralchat_lite_benchmarks"


def is_whole(folder: Path) -> bool:
    return (folder / COMPLETE).exists()


def write_whole(folder: Path, write: Callable[[Path], None], digest: str) -> None:
    """Fill a folder by `write`, under a temporary name until all of it is on the disk.

    digest: of the model, kept in the folder
    Raises ConfigError when the folder cannot be written, and what `write` raises.
    """
    try:
        shutil.rmtree(folder, ignore_errors=True)  # its mark is missing: it is not whole
        with whole_folder(folder) as temporary:
            write(temporary)
            flush_contents(temporary)
            write_flushed(temporary / COMPLETE, json.dumps({"sha256": digest}).encode())
    except CacheError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.__cause__ or error}): make room, check "
            f"permissions, or set {FOLDER_VARIABLE} to another folder"
        ) from error


def flush_contents(folder: Path) -> None:
    """Engines write their files without flushing them; the mark must not reach the disk first."""
    for path in folder.rglob("*"):
        if path.is_dir():
            flush_folder(path)
        elif path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def remove_models(root: Path) -> int:
    """Delete every model that the benchmarks made. Returns the bytes set free."""
    size = 0
    for mark in sorted(root.glob(f"*/*/{COMPLETE}")):
        size += sum(path.stat().st_size for path in mark.parent.rglob("*") if path.is_file())
        shutil.rmtree(mark.parent)
        shutil.rmtree(mark.parent.with_name(LITTER), ignore_errors=True)
    for leftover in sorted(root.glob("*/.tmp-*")):  # of processes that were killed
        shutil.rmtree(leftover)
    for folder in sorted(root.glob("*/")):
        if not any(folder.iterdir()):
            folder.rmdir()
    return size
