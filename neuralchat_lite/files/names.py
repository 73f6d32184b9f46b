"""The names of files in model folders: one list for downloading, copying and checking."""

from __future__ import annotations

import os

MANIFEST = "manifest.json"
QUANTIZATION = "quantization_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # one of them makes a tokenizer
CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json")
CONFIGURATION = ("config.json", "generation_config.json")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    *CHAT_TEMPLATES,
)
# Beside the weights of a checkpoint; copied as they are, where they exist.
SIDECARS = (*CONFIGURATION, *TOKENIZER)

LONGEST_NAME = 255  # bytes that a file system allows


def is_file_name(name: str) -> bool:
    """Whether a text can be the name of a file, without a folder."""
    try:
        data = os.fsencode(name)
    except UnicodeEncodeError:  # half a character
        return False
    return name not in ("", ".", "..") and not {"/", "\0"} & set(name) and len(data) <= LONGEST_NAME
