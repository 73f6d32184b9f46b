"""A quantized folder copied to where its owner wants it."""

from __future__ import annotations

import json
from pathlib import Path

from neuralchat_lite.errors import CacheError
from neuralchat_lite.files.folder import copy_flushed, whole_folder, write_flushed
from neuralchat_lite.files.names import MANIFEST, QUANTIZATION, SIDECARS
from neuralchat_lite.packed.foreign import marked
from neuralchat_lite.packed.manifest import read_manifest, released
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig

KEPT = tuple(name for name in SIDECARS if name != "config.json")


def save_copy(source: Path, config: WeightOnlyQuantConfig, target: Path) -> Path:
    """Copy a quantized folder whole or not at all, to be its owner's: see `manifest.released`.

    config: how the copy is to be run, unless the next `load` says otherwise
    A tokenizer that was saved to `target` before stays. Raises CacheError when `target` has other
    files or cannot be written.
    """
    if target.exists() and not target.is_dir():
        raise CacheError(f"{target} is a file: choose another folder, or remove it")
    theirs = {path.name for path in target.iterdir()} if target.exists() else set()
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
    with whole_folder(target, keep=KEPT) as folder:
        for file in sorted(source.iterdir()):
            named = file.name in own or file.name in theirs or file.name.startswith(".")
            if file.is_file() and not named:
                copy_flushed(file, folder / file.name)
        for name, data in own.items():
            write_flushed(folder / name, data)
    return target
