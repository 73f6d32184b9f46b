"""Settings of single matrices: `overrides` of WeightOnlyQuantConfig."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.quantization.settings import MatrixSettings

UP = "model.layers.0.mlp.up_proj"
OVERRIDES = {
    "model.layers.0.self_attn.*": {"group_size": 64},
    "model.layers.0.*": {"weight_dtype": torch.int8, "group_size": 128, "scheme": "affine"},
    "lm_head": "int4_fullrange",
}


def test_the_first_pattern_that_matches_the_full_name_counts() -> None:
    config = WeightOnlyQuantConfig(overrides=OVERRIDES)
    common = MatrixSettings("int4", 32, "affine8", "fp16")
    assert config.settings_of("model.layers.1.mlp.up_proj") == common
    assert config.settings_of("model.layers.10.mlp.up_proj") == common
    assert config.settings_of(UP) == MatrixSettings("int8", 128, "affine", "fp16")
    keys = config.settings_of("model.layers.0.self_attn.k_proj")
    assert keys == MatrixSettings("int4", 64, "affine8", "fp16")
    assert config.dtype_of("lm_head") == "int4_fullrange"
    turned = WeightOnlyQuantConfig(overrides=dict(reversed(OVERRIDES.items())))
    assert turned.dtype_of("model.layers.0.self_attn.k_proj") == "int8"


def test_a_module_that_is_not_converted_has_no_settings() -> None:
    config = WeightOnlyQuantConfig(overrides={"*": "int8"}, modules_to_not_convert=["lm_head"])
    assert config.settings_of("lm_head") is None
    assert config.dtype_of(UP) == "int8"


def test_overrides_round_trip_in_their_order() -> None:
    config = WeightOnlyQuantConfig(overrides=OVERRIDES)
    assert config.to_dict()["overrides"] == {
        "model.layers.0.self_attn.*": {"group_size": 64},
        "model.layers.0.*": {"weight_dtype": "int8", "group_size": 128, "scheme": "affine"},
        "lm_head": {"weight_dtype": "int4_fullrange"},
    }
    assert WeightOnlyQuantConfig.from_json(config.to_json()) == config
    assert WeightOnlyQuantConfig(**config.bytes_config()) == config
    assert dataclasses.replace(config, group_size=32) == config
    assert hash(config) == hash(WeightOnlyQuantConfig(overrides=OVERRIDES))


def test_their_order_is_part_of_what_a_cache_key_is_made_of() -> None:
    one = WeightOnlyQuantConfig(overrides=OVERRIDES)
    other = WeightOnlyQuantConfig(overrides=dict(reversed(OVERRIDES.items())))
    texts = [json.dumps(c.bytes_config(), sort_keys=True) for c in (one, other)]
    assert texts[0] != texts[1]


@pytest.mark.parametrize("nothing", [None, {}, []])
def test_without_overrides_a_config_has_the_bytes_that_it_had_before(nothing: Any) -> None:
    config = WeightOnlyQuantConfig(overrides=nothing)
    assert config == WeightOnlyQuantConfig()
    assert "overrides" not in config.to_json()
    assert "overrides" not in config.bytes_config()


def test_full_range_of_a_scheme_that_an_override_changes_keeps_its_name() -> None:
    symmetric = {UP: {"scheme": "sym"}}
    config = WeightOnlyQuantConfig("int4_fullrange", scheme="asym", overrides=symmetric)
    assert config.dtype_of(UP) == "int4_fullrange"
    assert WeightOnlyQuantConfig(**config.bytes_config()).dtype_of(UP) == "int4_fullrange"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("int8", r"overrides must map patterns .*\'lm_head\': \'int8\'.*got \'int8\'"),
        ({"": "int8"}, "overrides must map patterns"),
        ({1: "int8"}, "overrides must map patterns"),
        ([("lm_head",)], "overrides must map patterns"),
        ({"lm_head": "int3"}, r"overrides\[.lm_head.\]: weight_dtype must be one of .*int3"),
        ({"lm_head": "nf4"}, r"overrides\[.lm_head.\]: weight_dtype=.nf4. .*int4"),
        ({"lm_head": None}, r"overrides\[.lm_head.\]: weight_dtype is None.*leave it out"),
        ({"lm_head": {}}, r"overrides\[.lm_head.\] changes nothing.*take it out"),
        ({"*": {"group_size": 48}}, "group_size must be 32, 64, 128 or -1"),
        ({"*": {"groupsize": 32}}, "not an option of a single matrix.*mean .group_size"),
        ({"*": {"compute_dtype": "int8"}}, "not an option of a single matrix"),
        ({"*": {"scheme": "affin"}}, "scheme must be one of .*mean .affine"),
    ],
)
def test_a_bad_override_gives_value_rule_and_remedy(overrides: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WeightOnlyQuantConfig(overrides=overrides)


def test_auto_takes_the_widest_precision_of_matrices_that_share_an_input() -> None:
    queries, keys = (f"model.layers.0.self_attn.{name}_proj" for name in "qk")
    config = WeightOnlyQuantConfig(compute_dtype="auto", overrides={keys: "int8"})
    assert config.compute_together(queries) == "int8"
    assert config.compute_together(keys) == "bf16"
    assert config.compute_together(queries, keys) == "bf16"
    assert config.computes() == {"int4": "int8", "int8": "bf16"}
    fixed = dataclasses.replace(config, compute_dtype="int8")
    assert fixed.compute_together(queries, keys) == "int8"
