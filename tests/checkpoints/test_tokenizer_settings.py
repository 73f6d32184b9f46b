"""A wrong value beside tokenizer.json is named with its file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from neuralchat_lite.checkpoints.tokenizer import load_tokenizer
from neuralchat_lite.errors import CheckpointError

from . import tokenizer_folders as made

WRONG: list[tuple[str, Any, str]] = [
    ("tokenizer_config.json", {"model_max_length": "x"}, "model_max_length must be a number"),
    ("tokenizer_config.json", {"padding_side": 3}, "padding_side must be 'left' or 'right', got 3"),
    ("tokenizer_config.json", {"eos_token": {"a": 1}}, "eos_token must be a token"),
    ("tokenizer_config.json", {"chat_template": 5}, "chat_template must be a text"),
    ("tokenizer_config.json", {"chat_template": {}}, "chat_template must be a text"),
    ("tokenizer_config.json", {"chat_template": [1]}, "chat_template must be a text"),
    ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "must be an object of tokens"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"x": "a"}}, "must be an object of tokens"),
    ("tokenizer_config.json", {"additional_special_tokens": "abc"}, "must be a list of tokens"),
    ("tokenizer_config.json", {"extra_special_tokens": {"a": 5}}, "must be a list of tokens, or"),
    ("special_tokens_map.json", {"eos_token": 5}, "eos_token must be a token"),
    ("special_tokens_map.json", None, "not JSON .it holds a NoneType"),
    ("added_tokens.json", {"a": "b"}, "'a' must be an id, got 'b'"),
    ("added_tokens.json", {"a": 1.5}, "'a' must be an id, got 1.5"),
    ("added_tokens.json", [], "not JSON .it holds a list"),
]


@pytest.mark.parametrize(("name", "value", "said"), WRONG, ids=[said for _, _, said in WRONG])
def test_a_value_that_cannot_be_is_told_with_file_and_key(
    tmp_path: Path, name: str, value: Any, said: str
) -> None:
    folder = made.write_folder(tmp_path / "model", made.byte_level_style())
    (folder / name).write_text(json.dumps(value))
    with pytest.raises(CheckpointError, match=rf"{name}.*{said}"):
        load_tokenizer(folder)


def test_a_template_that_is_no_text_is_told_with_its_file(tmp_path: Path) -> None:
    folder = made.write_folder(tmp_path / "model", made.byte_level_style())
    (folder / "chat_template.jinja").write_bytes(b"{{ 1 }}\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja is not valid UTF-8 at byte 7"):
        load_tokenizer(folder)
