"""The table of families: `model_type` of config.json -> the place of its description.

A new family is one file beside `llama.py` and one row here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from neuralchat_lite.errors import UnsupportedModelError
from neuralchat_lite.families.family import Family
from neuralchat_lite.values import shown

# model_type -> "module:name" of a Family, imported when a model asks for it.
FAMILIES: dict[str, str] = {
    "llama": "neuralchat_lite.families.llama:LLAMA",
    "mistral": "neuralchat_lite.families.mistral:MISTRAL",
    "qwen2": "neuralchat_lite.families.qwen2:QWEN2",
    "qwen3": "neuralchat_lite.families.qwen3:QWEN3",
}


def family_of(model_type: Any) -> Family:
    """Raises UnsupportedModelError for a model type without a row."""
    place = FAMILIES.get(str(model_type))
    if place is None:
        raise UnsupportedModelError(
            f"model_type {shown(model_type)} is not supported: expected one of {sorted(FAMILIES)}"
        )
    module, _, name = place.partition(":")
    family = getattr(import_module(module), name)
    assert isinstance(family, Family), place
    return family
