"""What of generation_config.json a chat takes, and what is only reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import neuralchat_lite as ncl
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.generation.defaults import chat_defaults, recommended

QWEN = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1}


@pytest.mark.parametrize(
    ("file", "taken"),
    [
        (QWEN, {name: value for name, value in QWEN.items() if name != "do_sample"}),
        ({**QWEN, "do_sample": False}, {"repetition_penalty": 1.1}),
        ({"temperature": 0.7}, {}),  # transformers is greedy here too
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": True, "top_p": 1.0, "top_k": 0}, {"temperature": 1.0}),
        ({"do_sample": True, "temperature": 0, "top_k": 5}, {}),
        ({"do_sample": True, "temperature": None, "top_k": 5}, {"temperature": 1.0, "top_k": 5}),
        ({"eos_token_id": [1, 2], "max_length": 99}, {}),
    ],
)
def test_a_chat_takes_what_transformers_would(
    tmp_path: Path, file: dict[str, Any], taken: dict[str, Any]
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(file))
    assert chat_defaults(tmp_path) == taken


def test_a_value_that_is_not_allowed_is_refused_with_its_file(tmp_path: Path) -> None:
    assert chat_defaults(tmp_path) == recommended(tmp_path) == {}
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"do_sample": True, "top_p": 7}))
    with pytest.raises(ConfigError, match=r"generation_config\.json: top_p must be"):
        chat_defaults(tmp_path)


def test_the_report_says_what_generate_does_not_use(stories: Path, tmp_path: Path) -> None:
    source = tmp_path / "model"
    shutil.copytree(stories, source, copy_function=shutil.copyfile)
    config = {**QWEN, "eos_token_id": 2, "num_beams": 4, "transformers_version": "5", "_x": 1}
    (source / "generation_config.json").write_text(json.dumps(config))
    model = ncl.load(source, cache_dir=tmp_path / "cache")
    assert model.report()["generation_config_not_used"] == {**QWEN, "num_beams": 4}
