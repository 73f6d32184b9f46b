"""Digests of files, stored so that a file of 14 GB is hashed once.

A digest is stored under the path, size, times and inode of the file. Any write changes one of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

from neuralchat_lite.errors import CheckpointError

log = logging.getLogger(__name__)

DIGESTS = ".digests"  # folder of the cache with one small file per stored digest
HASH_PIECE = 1 << 22

# Called with a file name, bytes done and bytes in all.
HashProgress = Callable[[str, int, int], None]


def sha256_of(path: Path, progress: HashProgress | None = None) -> str:
    digest = hashlib.sha256()
    total, done = path.stat().st_size, 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(HASH_PIECE):
            digest.update(piece)
            done += len(piece)
            if progress is not None:
                progress(path.name, done, total)
    return digest.hexdigest()


def file_digest(path: Path, root: Path | None, progress: HashProgress | None = None) -> str:
    """sha256 of a file. It is stored under `root` and used again until the file changes."""
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
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}): check permissions"
        ) from None
    if note is not None:
        write_note(note, found)
    return found


def fingerprint(path: Path) -> list[str | int]:
    """Changes whenever the contents do: any write sets ctime, which no program can set back."""
    stat = path.stat()
    return [str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def digest_of(value: object) -> str:
    """sha256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_note(note: Path) -> str | None:
    try:
        text = note.read_text(encoding="ascii")
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
