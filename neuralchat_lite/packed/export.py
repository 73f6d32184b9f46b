"""Writing a model for other programs: a table of what can be written.

A new format is one file here and a row of EXPORTS for each of its types.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from neuralchat_lite.checkpoints.source import Source
from neuralchat_lite.checkpoints.tokenizer import Tokenizer
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.files.progress import ProgressCallback
from neuralchat_lite.packed.format import PackedModel
from neuralchat_lite.values import shown

GGUF = "neuralchat_lite.packed.gguf:export_gguf"
# Type -> the function that writes it. It takes what `export_model` takes.
EXPORTS = {
    "q8_0": GGUF,
    "q4_0": GGUF,
    "q4_1": GGUF,
    "gptq": "neuralchat_lite.packed.gptq:GPTQ",
    "compressed-tensors": "neuralchat_lite.packed.compressed_tensors:COMPRESSED_TENSORS",
}


def export_model(
    model: Source | PackedModel,
    tokenizer: Tokenizer,
    sidecars: Mapping[str, bytes],
    out: Path,
    kind: str | None = None,
    *,
    progress: ProgressCallback | None = None,
) -> Path:
    """Write a model as a type of EXPORTS; None: as a GGUF file. Returns its path.

    tokenizer, sidecars: of the model
    Raises ConfigError for a type that is not there or cannot hold the codes, CacheError when the
    result cannot be written.
    """
    if kind is not None and kind.lower() not in EXPORTS:
        raise ConfigError(f"type must be one of {', '.join(EXPORTS)}, got {shown(kind)}")
    kind = None if kind is None else kind.lower()
    module, _, function = (GGUF if kind is None else EXPORTS[kind]).partition(":")
    written: Path = getattr(import_module(module), function)(
        model, tokenizer, sidecars, out, kind, progress=progress
    )
    return written
