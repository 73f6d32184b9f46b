"""Any value under any key of adapter_config.json is read, or refused by name, at once."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from neuralchat_lite.adapters.config import READ, WITHOUT_EFFECT, read_adapter_config
from neuralchat_lite.errors import CheckpointError, NeuralchatError

GOOD: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj"],
    "layers_to_transform": [0],
    "layers_pattern": "layers",
}
MODULES = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(3)]
NASTY = [
    *[None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf")],
    *["", "a", "(", "\0\x1b[31m", "x" * 100_000, "(?i)a", "a)(?:b", r"(.*)*(.*)*(.*)*x", "(a)"],
    *[[], [1], [True], [None], [[[]]], ["(a)"], ["("], [10**400], ["a"] * 5000],
    *[{}, {"a": 1}, {"(": 1}, {"a": "1"}, {"a": True}, {"a": 10**400}, {"(a)+": {}}],
    {str(number): 1 for number in range(5000)},
]


@pytest.mark.parametrize("key", [*READ, *WITHOUT_EFFECT, "unknown", "\x1b[31m"])
def test_any_value_of_any_key_is_read_or_refused_by_name(key: str, tmp_path: Path) -> None:
    for value in NASTY:
        (tmp_path / "adapter_config.json").write_text(json.dumps(GOOD | {key: value}))
        with contextlib.suppress(NeuralchatError):
            config = read_adapter_config(tmp_path).on(MODULES)
            for module in MODULES:
                assert isinstance(config.has_target(module), bool)
                assert isinstance(config.scale_of(module), float)


@pytest.mark.parametrize(
    ("keys", "rule"),
    [
        ({"target_modules": ["a"] * 5000}, "target_modules must be of at most 4096 entries"),
        ({"rank_pattern": {"x" * 9999: "y"}}, r"rank_pattern\['xxx.*positive integer"),
        ({"layers_to_transform": False}, "layers_to_transform must be a list of layer numbers"),
        ({"lora_dropout": 3}, "lora_dropout must be a number from 0 to 1, got 3"),
        ({"lora_alpha": float("nan")}, "it holds NaN, and JSON has only finite numbers"),
        ({"alpha_pattern": {"(?i)q": 1}}, r"alpha_pattern must be a regular.*global flags"),
        ({"exclude_modules": "("}, "exclude_modules must be a regular expression"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_impossible_value_is_refused_shortly(keys, rule, tmp_path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(GOOD | keys))
    with pytest.raises(CheckpointError, match=rule) as refused:
        read_adapter_config(tmp_path).on(MODULES)
    assert len(str(refused.value)) < 800
