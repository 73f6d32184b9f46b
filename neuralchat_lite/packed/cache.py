"""The cache of quantized models: quantize once, map ever after.

An entry is a quantized folder whose key is a digest of everything that decides its bytes. It gets
its name by a rename of a finished folder, so what has the name is whole. One lock per entry keeps
two processes from doing the same work; it is the kernel's (flock), so it dies with its process.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from neuralchat_lite.checkpoints.source import Source
from neuralchat_lite.errors import CacheError, ConfigError
from neuralchat_lite.files.digests import digest_of
from neuralchat_lite.files.folder import (
    TEMPORARY,
    given_folder,
    unfinished_folders,
    unwritable,
)
from neuralchat_lite.files.names import MANIFEST
from neuralchat_lite.files.progress import Progress, ProgressCallback, hashing
from neuralchat_lite.packed.format import open_packed
from neuralchat_lite.packed.manifest import FORMAT_VERSION, check_sizes, read_manifest, remedy
from neuralchat_lite.packed.quantize import write_whole
from neuralchat_lite.quantization import open_quantizer
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig

log = logging.getLogger(__name__)

LOCK = ".{}.lock"
# What `entry_name` makes. Somebody may point the cache at a folder with other things in it.
ENTRY_NAME = re.compile(r".+-(int4|int4_fullrange|int8)-(g32|g64|g128|row)-[0-9a-f]{12}")
WAIT_SECONDS = 1.0  # between two words to somebody who waits for another process


@dataclass(frozen=True)
class Entry:
    """A model in the cache.

    name: the folder's name, by which the command line knows it
    disk_bytes: the size of its files
    manifest: its manifest.json, or None when that or a file of it is damaged: `problem` says how
    """

    name: str
    path: Path
    disk_bytes: int
    manifest: dict[str, Any] | None
    problem: str | None = None


def cache_root() -> Path:
    """Where the cache is, by the environment.

    NEURALCHAT_LITE_CACHE, else $XDG_CACHE_HOME/neuralchat_lite, else ~/.cache/neuralchat_lite.
    Raises ConfigError when one of them cannot be a path, or there is no home.
    """
    for name, below in (("NEURALCHAT_LITE_CACHE", ""), ("XDG_CACHE_HOME", "neuralchat_lite")):
        if given := os.environ.get(name):
            return given_folder(given, name) / below
    try:
        return Path.home() / ".cache" / "neuralchat_lite"
    except RuntimeError:  # such as in a container that runs as a user without a name
        raise ConfigError(
            "this user has no home folder for the cache of quantized models: set "
            "NEURALCHAT_LITE_CACHE to a folder"
        ) from None


def cached(
    source: Source,
    config: WeightOnlyQuantConfig,
    *,
    root: Path | None = None,
    progress: ProgressCallback | None = None,
) -> Path:
    """The folder of a model in the cache, quantized now unless it is there already.

    root: cache folder instead of `cache_root()`

    One entry serves every compute_dtype. While another process makes the same entry, this one
    waits and says so (progress stage "wait"). Raises CacheError when the cache cannot be written
    or the entry is damaged, and what `quantize_checkpoint` raises.
    """
    root = cache_root() if root is None else Path(root)
    source_id = source.identity(root, hashing(progress))
    key = cache_key(source_id, config)
    entry = root / entry_name(source.name, config, key)
    try:
        found = entry.exists()
        if not found:
            root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(root / LOCK.format(entry.name))
            acquire(lock, entry, progress)
    except OSError as error:
        raise unwritable(entry, error) from error
    if found:
        return checked(entry, key)
    try:
        if not entry.exists():  # nobody made it while we waited
            stored = WeightOnlyQuantConfig(**config.bytes_config())  # no more than the key has
            write_whole(source, stored, entry, source_id=source_id, key=key, progress=progress)
    finally:
        lock.release()
    return checked(entry, key)


def cache_key(source_id: dict[str, Any], config: WeightOnlyQuantConfig) -> str:
    return digest_of(
        {
            "format": FORMAT_VERSION,
            "quantizer": open_quantizer(config).identity.to_key(),
            "quantization": config.bytes_config(),
            "source": source_id,
        }
    )


def entry_name(model: str, config: WeightOnlyQuantConfig, key: str) -> str:
    """A readable name: `neural-chat-7b-v3-2-int4-g32-0123456789ab`."""
    short = re.sub(r"[^A-Za-z0-9._-]+", "_", model.rpartition("/")[2]).lstrip(".") or "model"
    return f"{short[:80]}-{config.short_name}-{key[:12]}"


def acquire(lock: FileLock, entry: Path, progress: ProgressCallback | None) -> None:
    timeout = 0.0
    while True:
        try:
            lock.acquire(timeout=timeout)
            return
        except NotImplementedError:  # what filelock makes of ENOSYS
            raise OSError(errno.ENOSYS, "its file system has no locks") from None
        except Timeout:
            if timeout == 0:
                log.info("another process is quantizing %s: waiting for it", entry.name)
            timeout = WAIT_SECONDS
            if progress is not None:
                progress(Progress("wait", entry.name, 0, 0))


def checked(entry: Path, key: str) -> Path:
    """The entry, if it is of this key: names hold only 12 digits of it."""
    found = read_manifest(entry)["key"]
    if found != key:
        raise CacheError(f"{entry} has the key {found}, expected {key}: {remedy(entry)}")
    return entry


def entries(root: Path | None = None) -> list[Entry]:
    """Every model in the cache, by name; damaged ones say what is wrong. Folders that the cache
    did not make are none of its business."""
    root = cache_root() if root is None else Path(root)
    return [read_entry(folder) for folder in folders_in(root) if is_entry(folder)]


def folders_in(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.is_dir() and not path.is_symlink())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CacheError(f"{root} cannot be read ({error.strerror}): check permissions") from None


def is_entry(folder: Path) -> bool:
    """Whether the cache made this folder: it has such a name, and a lock or a manifest."""
    if not ENTRY_NAME.fullmatch(folder.name):
        return False
    marks = folder.with_name(LOCK.format(folder.name)), folder / MANIFEST
    try:
        return any(mark.exists() for mark in marks)
    except OSError:  # the folder is closed to us, and its name is one of ours
        return True


def read_entry(folder: Path) -> Entry:
    try:
        size = disk_bytes(folder)
    except OSError as error:
        problem = f"{folder} cannot be read ({error.strerror}): check permissions"
        return Entry(folder.name, folder, 0, None, problem)
    try:
        manifest = read_manifest(folder)
        check_sizes(folder, manifest)
    except CacheError as error:
        return Entry(folder.name, folder, size, None, str(error))
    return Entry(folder.name, folder, size, manifest)


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def leftovers(root: Path | None = None) -> list[Path]:
    """Unfinished folders whose processes are gone. The next run with the same key removes its own;
    those of other keys stay until somebody asks."""
    root = cache_root() if root is None else Path(root)
    return unfinished_folders(root) if folders_in(root) else []


def verify(entry: Entry, progress: ProgressCallback | None = None) -> None:
    """Compare every file of an entry with its digest. Raises CacheError when one differs."""
    open_packed(entry.path, verify="always", progress=hashing(progress, "verify"))


def remove(folder: Path) -> None:
    """Delete an entry or a leftover. Processes that have it mapped keep it until they end."""
    aside = folder.with_name(f"{TEMPORARY}removed-{folder.name.lstrip('.')}-{os.getpid()}")
    try:
        folder.rename(aside)  # at once, so that nobody opens what is half deleted
        shutil.rmtree(aside)
    except OSError as error:
        raise CacheError(
            f"{folder} cannot be removed ({error.strerror}): check permissions"
        ) from None
