"""What a model's makers recommend: the sampling of its generation_config.json.

`generate` is greedy unless told otherwise, so that results are the same everywhere. A chat takes
the makers' values, as transformers would.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.files.json_file import read_json
from neuralchat_lite.generation.options import GenerationOptions, without_idle_filters

FILE = "generation_config.json"
ALWAYS = ("repetition_penalty",)
WHEN_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
# Of no effect here, or used elsewhere: the ids of special tokens, and notes of transformers.
NOT_SAMPLING = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "transformers_version",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "output_logits",
    "return_dict_in_generate",
)


def recommended(folder: Path) -> dict[str, Any]:
    """Everything in a folder's generation_config.json that is about choosing tokens."""
    if not (folder / FILE).exists():
        return {}
    return {
        name: value
        for name, value in read_json(folder / FILE).items()
        if not name.startswith("_") and name not in NOT_SAMPLING and not is_unset(value)
    }


def is_unset(value: Any) -> bool:
    return value is None or value is False or value in ([], {})


def chat_defaults(folder: Path) -> dict[str, Any]:
    """The options that a chat starts with. Raises ConfigError for a value that is not allowed.

    As in transformers, temperature and filters count only when do_sample is true.
    """
    found = recommended(folder)
    names = (*ALWAYS, *WHEN_SAMPLING) if found.get("do_sample") is True else ALWAYS
    options = {name: found[name] for name in names if name in found}
    if found.get("do_sample") is True:
        options.setdefault("temperature", 1.0)
    options = without_idle_filters(options)
    try:
        return differing(GenerationOptions.of(options), options)
    except ConfigError as error:
        raise ConfigError(f"{folder / FILE}: {error}") from None


def differing(options: GenerationOptions, given: Mapping[str, Any]) -> dict[str, Any]:
    usual = GenerationOptions()
    return {
        name: getattr(options, name)
        for name in given
        if getattr(options, name) != getattr(usual, name)
    }
