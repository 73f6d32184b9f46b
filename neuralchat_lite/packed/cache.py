"""The cache of quantized models: quantize once, map ever after.

An entry is a quantized folder whose key is a digest of everything that decides its bytes. A
finished folder is renamed to the entry's name, so an entry is always complete. One lock per entry
keeps two processes from doing the same work. It is a flock, so it ends with its process.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from neuralchat_lite.files.work import unfinished_work
from neuralchat_lite.packed.manifest import (
    check_sizes,
    format_version,
    noted_config,
    read_manifest,
    remedy,
)
from neuralchat_lite.quantization import open_quantizer
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.quantization.description import described
from neuralchat_lite.values import shown

if TYPE_CHECKING:
    from filelock import FileLock

    from neuralchat_lite.checkpoints.source import Source
    from neuralchat_lite.packed.format import PackedModel
    from neuralchat_lite.quantization.calibration import Calibration
    from neuralchat_lite.quantization.quantizer import Quantizer

# What needs torch is imported where it is needed: listing the cache takes a moment without it.

log = logging.getLogger(__name__)

LOCK = ".{}.lock"
# The names that `entry_name` makes. The cache folder may contain other folders too.
ENTRY_NAME = re.compile(r".+-(int4|int4_fullrange|int8)-(g32|g64|g128|row)-[0-9a-f]{12}")
WAIT_SECONDS = 1.0  # between two progress reports while another process is at work


@dataclass(frozen=True)
class Entry:
    """A model in the cache.

    name: the folder's name, which the command line uses
    disk_bytes: the size of its files
    manifest: its manifest.json, or None when it or another file is damaged; see `problem`
    written: when it was quantized, in seconds since 1970; None when that cannot be read
    """

    name: str
    path: Path
    disk_bytes: int
    manifest: dict[str, Any] | None
    problem: str | None = None
    written: float | None = None

    @property
    def source(self) -> str | None:
        """What it was made from: a hub name, or the folder as it was called then, and adapters."""
        if self.manifest is None:
            return None
        made_from = self.manifest["source"].get("hub") or self.manifest.get("origin")
        if made_from is None:  # written by an older release
            return None
        adapters = len(self.manifest["adapters"])
        more = f" + {adapters} adapter{'s' * (adapters != 1)}" if adapters else ""
        return f"{made_from}{more}"

    @property
    def settings(self) -> str | None:
        """How it is quantized, in a line; its name has the common settings alone."""
        if self.manifest is None:
            return None
        try:
            return described(noted_config(self.manifest))
        except ConfigError:  # written by a newer release, or changed
            return None


def cache_root() -> Path:
    """The cache folder, from environment variables.

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
    calibration: Calibration | None = None,
    root: Path | None = None,
    progress: ProgressCallback | None = None,
    origin: Path | None = None,
) -> Path:
    """The folder of a model in the cache. Quantizes the model if it is not there.

    calibration: texts, for an algorithm that looks at activations
    root: cache folder instead of `cache_root()`
    origin: the checkpoint's folder, noted in a new entry for people who look at the cache

    Raises what `open_cached` raises.
    """
    return found_or_made(
        source, config, open_quantizer(config, calibration), root, progress, origin
    )[0]


def open_cached(
    source: Source,
    config: WeightOnlyQuantConfig,
    *,
    calibration: Calibration | None = None,
    root: Path | None = None,
    progress: ProgressCallback | None = None,
    origin: Path | None = None,
) -> PackedModel:
    """The model in the folder that `cached` gives.

    One entry serves every compute_dtype. While another process makes the same entry, this one
    waits and says so (progress stage "wait"). Raises CacheError when the cache cannot be written
    or the entry is damaged, and what `quantize_checkpoint` raises.
    """
    from neuralchat_lite.packed.format import open_packed

    folder, manifest = found_or_made(
        source, config, open_quantizer(config, calibration), root, progress, origin
    )
    return open_packed(folder, manifest=manifest)


def found_or_made(
    source: Source,
    config: WeightOnlyQuantConfig,
    quantizer: Quantizer,
    root: Path | None,
    progress: ProgressCallback | None,
    origin: Path | None,
) -> tuple[Path, dict[str, Any]]:
    """The folder of `cached`, and its manifest."""
    from filelock import FileLock

    from neuralchat_lite.packed.quantize import write_whole

    root = cache_root() if root is None else Path(root)
    source_id = source.identity(root, hashing(progress))
    key = cache_key(source_id, config, quantizer)
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
        return entry, manifest_of(entry, key)
    try:
        if not entry.exists():  # nobody made it while we waited
            stored = WeightOnlyQuantConfig(**config.bytes_config())  # only what the key contains
            write_whole(
                source,
                stored,
                quantizer,
                entry,
                source_id=source_id,
                key=key,
                origin=origin,
                progress=progress,
            )
    finally:
        lock.release()
    return entry, manifest_of(entry, key)


def cache_key(
    source_id: dict[str, Any], config: WeightOnlyQuantConfig, quantizer: Quantizer
) -> str:
    return digest_of(
        {
            "format": format_version(config),
            "quantizer": quantizer.identity.to_key(),
            "quantization": config.key_config(),
            "source": source_id,
        }
    )


def entry_name(model: str, config: WeightOnlyQuantConfig, key: str) -> str:
    """A readable name: `neural-chat-7b-v3-2-int4-g32-0123456789ab`."""
    short = re.sub(r"[^A-Za-z0-9._-]+", "_", model.rpartition("/")[2]).lstrip(".") or "model"
    return f"{short[:80]}-{config.short_name}-{key[:12]}"


def acquire(lock: FileLock, entry: Path, progress: ProgressCallback | None) -> None:
    from filelock import Timeout

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


def manifest_of(entry: Path, key: str) -> dict[str, Any]:
    """The manifest of an entry, if it has this key: the name holds only 12 digits of it."""
    manifest = read_manifest(entry)
    if manifest["key"] != key:
        raise CacheError(
            f"{entry} has the key {shown(manifest['key'])}, expected {key}: {remedy(entry)}"
        )
    return manifest


def entries(root: Path | None = None) -> list[Entry]:
    """Every model in the cache, sorted by name, damaged ones too. Folders that the cache did not
    make are left out."""
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
    except OSError:  # no permission to look inside, but the name is that of an entry
        return True


def read_entry(folder: Path) -> Entry:
    try:
        size = disk_bytes(folder)
        written = written_at(folder)
    except OSError as error:
        problem = f"{folder} cannot be read ({error.strerror}): check permissions"
        return Entry(folder.name, folder, 0, None, problem)
    try:
        manifest = read_manifest(folder)
        check_sizes(folder, manifest)
    except CacheError as error:
        return Entry(folder.name, folder, size, None, str(error), written)
    return Entry(folder.name, folder, size, manifest, None, written)


def written_at(folder: Path) -> float | None:
    manifest = folder / MANIFEST  # the last file that is written, and never changed
    return manifest.stat().st_mtime if manifest.exists() else None


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def leftovers(root: Path | None = None) -> list[Path]:
    """Unfinished folders whose processes have ended. The next run with the same key removes its
    folder; those of other keys stay until `remove` is called."""
    root = cache_root() if root is None else Path(root)
    if not folders_in(root):
        return []
    return [*unfinished_folders(root), *unfinished_work(root)]


def verify(entry: Entry, progress: ProgressCallback | None = None) -> None:
    """Compare every file of an entry with its digest. Raises CacheError when one differs."""
    from neuralchat_lite.packed.format import open_packed

    open_packed(entry.path, verify="always", progress=hashing(progress, "verify"))


def remove(folder: Path) -> None:
    """Delete an entry or a leftover. Processes that have mapped it can still read it."""
    aside = folder.with_name(f"{TEMPORARY}removed-{folder.name.lstrip('.')}-{os.getpid()}")
    try:
        folder.rename(aside)  # first, so that no process opens a half-deleted folder
        shutil.rmtree(aside)
    except OSError as error:
        raise CacheError(
            f"{folder} cannot be removed ({error.strerror}): check permissions"
        ) from None
