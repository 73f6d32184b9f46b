"""Saving a copy of a quantized folder."""

from __future__ import annotations

import json
from collections.abc import Set
from pathlib import Path

from neuralchat_lite.checkpoints.sidecars import require_inside
from neuralchat_lite.errors import CacheError
from neuralchat_lite.files.folder import copy_flushed, unwritable, whole_folder, write_flushed
from neuralchat_lite.files.names import MANIFEST, QUANTIZATION, SIDECARS
from neuralchat_lite.files.unchanged import UnchangedFile
from neuralchat_lite.packed.foreign import marked
from neuralchat_lite.packed.manifest import read_manifest, released
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig

KEPT = tuple(name for name in SIDECARS if name != "config.json")


def save_copy(source: Path, config: WeightOnlyQuantConfig, target: Path) -> Path:
    """Copy a quantized folder whole or not at all. `manifest.released` gives its manifest.

    config: the configuration to store in the copy
    Tokenizer files that are already in `target` are kept. Raises CacheError when `target` has other
    files or cannot be written.
    """
    try:
        if target.exists() and not target.is_dir():
            raise CacheError(f"{target} is a file: choose another folder, or remove it")
        theirs = {path.name for path in target.iterdir()} if target.exists() else set()
    except OSError as error:
        raise error if isinstance(error, CacheError) else unwritable(target, error) from None
    if not theirs <= set(KEPT):
        raise CacheError(f"{target} exists and is not empty: choose another folder, or remove it")
    # An older release has not marked it.
    shapes = marked((source / "config.json").read_bytes())
    manifest = released(read_manifest(source), config, shapes)
    own = {
        "config.json": shapes,
        QUANTIZATION: config.to_json().encode(),
        MANIFEST: (json.dumps(manifest, indent=2) + "\n").encode(),
    }
    files = to_copy(source, {*own, *theirs})
    with whole_folder(target, keep=KEPT) as folder:
        for file in files:
            copy_flushed(file, folder / file.name)
        for name, data in own.items():
            write_flushed(folder / name, data)
    return target


def to_copy(source: Path, but: Set[str]) -> list[Path]:
    """The files of a quantized folder, except for some names and hidden ones.

    Raises CheckpointError for a link that leads nowhere or out of the folder, and for what has the
    name of a file and is none.
    """
    found = []
    for file in sorted(source.iterdir()):
        if file.name in but or file.name.startswith("."):
            continue
        if file.is_symlink() or file.name in SIDECARS:
            require_inside(file)
            UnchangedFile(file)
        if file.is_file():
            found.append(file)
    return found
