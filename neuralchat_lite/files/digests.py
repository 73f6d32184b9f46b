"""Digests of files, stored so that a file of 14 GB is hashed once.

A digest is stored under the path, size, times and inode of the file. Any write changes one of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

from neuralchat_lite.files.regular import open_regular, read_regular
from neuralchat_lite.files.unchanged import UnchangedFile, unreadable

log = logging.getLogger(__name__)

DIGESTS = ".digests"  # folder of the cache with one small file per stored digest
HASH_PIECE = 1 << 22

# Called with a file name, bytes done and bytes in all.
HashProgress = Callable[[str, int, int], None]


def sha256_of(path: Path, progress: HashProgress | None = None) -> str:
    """Raises OSError when the file cannot be read, or is no regular file."""
    descriptor = open_regular(path)
    try:
        return sha256_of_open(descriptor, path.name, progress)
    finally:
        os.close(descriptor)


def sha256_of_open(descriptor: int, name: str, progress: HashProgress | None = None) -> str:
    digest = hashlib.sha256()
    total, done = os.fstat(descriptor).st_size, 0
    while piece := os.pread(descriptor, HASH_PIECE, done):
        digest.update(piece)
        done += len(piece)
        if progress is not None:
            progress(name, done, total)
    return digest.hexdigest()


def file_digest(
    file: UnchangedFile, root: Path | None, progress: HashProgress | None = None
) -> str:
    """sha256 of a file. It is stored under `root` and used again until the file changes.

    Raises CheckpointError when it has changed since it was opened.
    """
    note = None if root is None else root / DIGESTS / f"{digest_of(identity_of(file))}.sha256"
    found = None if note is None else read_note(note)
    if found is not None:
        file.require_unchanged()
        return found
    try:
        found = sha256_of_open(file.descriptor, file.name, progress)
    except OSError as error:
        raise unreadable(file.path, error) from None
    file.require_unchanged()
    if note is not None:
        write_note(note, found)
    return found


def identity_of(file: UnchangedFile) -> list[str | int]:
    return [str(file.path.resolve()), *dataclasses.astuple(file.fingerprint)]


def digest_of(value: object) -> str:
    """sha256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_note(note: Path) -> str | None:
    try:
        text = read_regular(note, 64).decode("ascii")
    except (OSError, UnicodeDecodeError):
        return None
    return text if len(text) == 64 else None  # anything else was not written by us: hash again


def write_note(note: Path, text: str) -> None:
    # Written under another name and renamed: another process may store the same digest now. A
    # failure only costs the time of hashing again, so it is logged and not raised.
    aside = note.with_suffix(f".{os.getpid()}")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="ascii")
        aside.replace(note)
    except OSError as error:
        log.info("the digest could not be stored in %s: %s", note.parent, error.strerror)
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
