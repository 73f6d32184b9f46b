"""The files beside tokenizer.json, checked value by value before transformers' classes read them.

Its errors name neither the file nor the key. What is not read here decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.families.config_values import is_integer, wrong
from neuralchat_lite.files.json_file import read_optional_json

Rule = tuple[Callable[[Any], bool], str]  # whether a value is right, and what it must be


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_token(value: Any) -> bool:
    """A token is a text, or an object that says how the text is found too."""
    return is_text(value.get("content") if isinstance(value, dict) else value)


def are_tokens(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_token, value))


def are_named_tokens(value: Any) -> bool:
    return are_tokens(list(value.values()) if isinstance(value, dict) else value)


def are_numbered_tokens(value: Any) -> bool:
    return isinstance(value, dict) and all(
        index.isdecimal() and is_token(token) for index, token in value.items()
    )


def is_template(value: Any) -> bool:
    if isinstance(value, list):  # of named ones
        return bool(value) and all(
            isinstance(each, dict) and is_text(each.get("name")) and is_text(each.get("template"))
            for each in value
        )
    if isinstance(value, dict):
        return bool(value) and all(map(is_text, value.values()))
    return is_text(value)


TOKEN: Rule = (is_token, "a token, a text or an object with a content")
SIDE: Rule = (lambda value: value in ("left", "right"), "'left' or 'right'")
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
RULES: dict[str, Rule] = {
    **dict.fromkeys(NAMED, TOKEN),
    "additional_special_tokens": (are_tokens, "a list of tokens"),
    "extra_special_tokens": (are_named_tokens, "a list of tokens, or an object of named ones"),
    "added_tokens_decoder": (are_numbered_tokens, "an object of tokens by their ids"),
    "chat_template": (is_template, "a text, or several by their names"),
    "model_max_length": (is_number, "a number"),
    "padding_side": SIDE,
    "truncation_side": SIDE,
}


def check_settings(folder: Path) -> None:
    """Raise CheckpointError, with file and key, for a value that cannot be."""
    for path, key, value, (right, rule) in values_of(folder):
        if not right(value):
            raise wrong(key, rule, value, str(path))
    template = folder / "chat_template.jinja"
    if template.exists():
        try:
            template.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{template} is not valid UTF-8 at byte {error.start}: download it again"
            ) from None


def values_of(folder: Path) -> Iterator[tuple[Path, str, Any, Rule]]:
    """(file, key, value, rule) of every value that has a rule."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        for key, value in read_optional_json(path).items():
            if key in RULES and value is not None:  # null means that it is absent
                yield path, key, value, RULES[key]
    path = folder / "added_tokens.json"
    for token, index in read_optional_json(path).items():
        yield path, repr(token), index, (lambda value: is_integer(value) and value >= 0, "an id")
