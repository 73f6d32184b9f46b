"""Whether a model folder is quantized: decided from its files before any other is read."""

from __future__ import annotations

from pathlib import Path

from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.files.names import MANIFEST, QUANTIZATION, WEIGHTS
from neuralchat_lite.files.safetensors_file import read_metadata

# In the header of quantized weights. Not "pt": transformers would read the file as a checkpoint and
# fill missing tensors with random values.
PACKED_METADATA = {"format": "neuralchat_lite"}


def is_packed(folder: Path | str) -> bool:
    """Whether a folder is a quantized model of this library. If one of its JSON files is missing,
    the header of the weights decides, so that it is not read as a checkpoint."""
    found = [(Path(folder) / name).is_file() for name in (MANIFEST, QUANTIZATION)]
    return all(found) or (any(found) and has_our_weights(Path(folder) / WEIGHTS))


def has_our_weights(path: Path) -> bool:
    try:
        return read_metadata(path).get("format") == PACKED_METADATA["format"]
    except CheckpointError:
        return False
