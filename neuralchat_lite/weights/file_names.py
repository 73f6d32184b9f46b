"""The names of files in model folders: one list for downloading, copying and checking."""

from __future__ import annotations

MANIFEST = "manifest.json"
QUANTIZATION = "quantization_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Beside the weights of a checkpoint; copied as they are, where they exist.
SIDECARS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
