"""What a checkpoint is, apart from where it lies: the part of a cache key that names the source.

A model of the hub is its name and resolved revision. A local folder is the sha256 of its files;
a merged checkpoint is its base and, in order, its adapters, each of them likewise;
as hashing 14 GB takes a while, digests are noted in the cache by path, size, times and inode.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neuralchat_lite.adapters.adapter import MergedCheckpoint
from neuralchat_lite.checkpoints.checkpoint import Checkpoint, RandomCheckpoint
from neuralchat_lite.files.digests import HashProgress, file_digest


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
