"""What a checkpoint is, apart from where it lies: the part of a cache key that names the source.

A model of the hub is its name and resolved revision. A local folder is the sha256 of its files;
a merged checkpoint is its base and, in order, its adapters, each of them likewise;
as hashing 14 GB takes a while, digests are noted in the cache by path, size, times and inode.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.weights.adapters import MergedCheckpoint
from neuralchat_lite.weights.checkpoint import Checkpoint, RandomCheckpoint
from neuralchat_lite.weights.manifest import HashProgress, sha256_of

log = logging.getLogger(__name__)

DIGESTS = ".digests"  # folder of the cache with one small file per noted digest


def identify(
    source: Checkpoint | RandomCheckpoint | MergedCheckpoint,
    *,
    hub: tuple[str, str] | None = None,
    root: Path | None = None,
    progress: HashProgress | None = None,
) -> dict[str, Any]:
    """The identity of a source as a JSON object that holds no path.

    hub: (repository, resolved revision), if it is from there
    root: cache folder that keeps digests of local files; without one nothing is kept
    progress: called with file name, bytes hashed, bytes in all

    Raises CheckpointError when a file cannot be read.
    """
    if isinstance(source, MergedCheckpoint):
        base = identify(source.base, hub=hub, root=root, progress=progress)
        adapters = [
            identify_files(adapter.files(), adapter.hub, root, progress)
            for adapter in source.adapters
        ]
        return {**base, "adapters": adapters}
    if isinstance(source, RandomCheckpoint):
        return {"random": source.seed, "dtype": str(source.dtype_given), "config": source.config}
    # What decides the bytes that are written: configuration, tokenizer, weights.
    return identify_files([*source.sidecars(), *source.files], hub, root, progress)


def identify_files(
    files: list[Path],
    hub: tuple[str, str] | None,
    root: Path | None,
    progress: HashProgress | None,
) -> dict[str, Any]:
    if hub is not None:
        # The revision fixes the contents; which files were there decides what is copied.
        sizes = {path.name: path.stat().st_size for path in files}
        return {"hub": hub[0], "revision": hub[1], "files": sizes}
    return {"files": {path.name: file_digest(path, root, progress) for path in files}}


def file_digest(path: Path, root: Path | None, progress: HashProgress | None = None) -> str:
    """sha256 of a file, noted under `root` for as long as the file is not touched."""
    try:
        path = path.resolve()
        before = fingerprint(path)
        note = None if root is None else root / DIGESTS / f"{digest_of(before)}.sha256"
        if note is not None and (noted := read_note(note)) is not None:
            return noted
        found = sha256_of(path, progress)
        if fingerprint(path) != before:
            raise CheckpointError(
                f"{path} changed while it was read: wait until it is complete, then try again"
            )
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if note is not None:
        write_note(note, found)
    return found


def fingerprint(path: Path) -> list[str | int]:
    """Changes whenever the contents do: any write sets ctime, which no program can set back."""
    stat = path.stat()
    return [str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def digest_of(value: object) -> str:
    """sha256 of a JSON value, written in one way."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_note(note: Path) -> str | None:
    try:
        text = note.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None
    return text if len(text) == 64 else None  # anything else was not written by us: hash again


def write_note(note: Path, text: str) -> None:
    # Aside, then renamed: another process may note the same digest now. Failing to note costs
    # only the time of hashing again, so it is logged and no error.
    aside = note.with_suffix(f".{os.getpid()}")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="ascii")
        aside.replace(note)
    except OSError as error:
        log.info("the digest could not be noted in %s: %s", note.parent, error.strerror)
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
