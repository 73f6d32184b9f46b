"""What kind of model folder this is, told from its files before anything is read."""

from __future__ import annotations

from pathlib import Path

from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.files.names import MANIFEST, QUANTIZATION, WEIGHTS
from neuralchat_lite.files.safetensors_file import read_metadata

# Of our weights. Not "pt": transformers would take the file for a checkpoint and make up what it
# does not find.
PACKED_METADATA = {"format": "neuralchat_lite"}


def is_packed(folder: Path | str) -> bool:
    """Whether a folder is (or was meant to be) a quantized model of this library: one that lacks
    a file is told from its weights, lest it be taken for a checkpoint."""
    found = [(Path(folder) / name).is_file() for name in (MANIFEST, QUANTIZATION)]
    return all(found) or (any(found) and has_our_weights(Path(folder) / WEIGHTS))


def has_our_weights(path: Path) -> bool:
    try:
        return read_metadata(path).get("format") == PACKED_METADATA["format"]
    except CheckpointError:
        return False
