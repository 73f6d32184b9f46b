"""The configurations of ITREX 1.4: names, defaults, round trips, refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.transformers.configs import (
    AutoRoundConfig,
    AwqConfig,
    GPTQConfig,
    RtnConfig,
    TeqConfig,
)

CLASSES = (RtnConfig, GPTQConfig, AwqConfig, TeqConfig, AutoRoundConfig)


@pytest.mark.parametrize(
    ("make", "bits", "group_size", "sym"),
    [
        (RtnConfig, 4, 32, True),
        (GPTQConfig, 4, 32, True),
        (AwqConfig, 8, 32, True),
        (TeqConfig, 8, 32, True),
        (AutoRoundConfig, 4, 128, False),
    ],
)
def test_defaults_are_those_of_itrex(make: Any, bits: int, group_size: int, sym: bool) -> None:
    config = make()
    assert (config.bits, config.group_size, config.sym) == (bits, group_size, sym)


@pytest.mark.parametrize("make", CLASSES)
def test_a_configuration_round_trips(make: Any) -> None:
    config = make(bits=8, group_size=64, sym=False, compute_dtype="fp32")
    assert make.from_dict(config.to_dict()) == config
    assert make.from_dict(config.to_diff_dict()) == config
    assert make.from_dict(json.loads(config.to_json_string())) == config
    assert make().to_diff_dict() == {}
    assert (
        json.loads(make().to_json_string(use_diff=False))["quant_method"] == make.algorithm.lower()
    )


def test_overrides_keep_their_order_in_json() -> None:
    config = RtnConfig(overrides={"model.layers.0.*": "int8", "*": {"group_size": 64}})
    assert RtnConfig.from_dict(json.loads(config.to_json_string())) == config
    assert list(json.loads(config.to_json_string())["overrides"]) == ["model.layers.0.*", "*"]
    weights = config.to_weight_only()
    assert weights.dtype_of("model.layers.0.mlp.up_proj") == "int8"
    assert weights.settings_of("lm_head").group_size == 64


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"weight_dtype": "int4_clip", "scheme": "sym"}),
        ({"bits": 8}, {"weight_dtype": "int8"}),
        ({"weight_dtype": "int8"}, {"weight_dtype": "int8"}),
        ({"weight_dtype": "int4_clip"}, {"weight_dtype": "int4_clip"}),
        ({"weight_dtype": "int4"}, {"weight_dtype": "int4", "scheme": "sym"}),
        ({"weight_dtype": "int4_fullrange"}, {"weight_dtype": "int4_fullrange"}),
        ({"sym": False}, {"scheme": "asym"}),
        ({"scale_dtype": "bf16", "compute_dtype": "int8"}, {"scale_dtype": "bf16"}),
        ({"llm_int8_skip_modules": ["lm_head"]}, {"modules_to_not_convert": ["lm_head"]}),
    ],
    ids=str,
)
def test_legacy_spellings_mean_options_of_the_one_configuration(
    options: dict[str, Any], expected: dict[str, Any]
) -> None:
    config = RtnConfig(**options).to_weight_only()
    assert isinstance(config, WeightOnlyQuantConfig)
    assert expected.items() <= config.to_dict().items()


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"bits": 3}, "bits must be 4 or 8, got 3"),
        ({"bits": 4, "weight_dtype": "int8"}, "bits=4 and weight_dtype='int8' contradict"),
        ({"bits": 8, "weight_dtype": "int4_fullrange"}, "contradict"),
        ({"weight_dtype": "nf4"}, "weight_dtype='nf4' is a float weight type"),
        ({"group_size": 48}, "group_size must be 32, 64, 128 or -1"),
        ({"sym": "yes"}, "sym must be True or False"),
        ({"use_double_quant": True}, "use_double_quant=True quantizes scales"),
        ({"mse_range": True}, "mse_range=True searches"),
        ({"use_quant": False}, "use_quant=False means no quantization"),
    ],
    ids=str,
)
def test_values_that_cannot_be_are_refused_at_once(options: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        RtnConfig(**options)


def test_options_of_algorithms_become_their_settings_and_texts() -> None:
    texts = ["calculate 1 + 2"]
    config = GPTQConfig(desc_act=True, dataset=texts, nsamples=4, max_input_length=64)
    options = config.to_weight_only().to_dict()
    assert options["algorithm"] == "GPTQ"
    assert options["algorithm_args"] == {
        "act_order": True,
        "block_size": 128,
        "percdamp": 0.1,
        "static_groups": False,
        "true_sequential": False,
    }
    assert config.to_calibration() == {"texts": texts, "samples": 4, "length": 64}
    rounding = AutoRoundConfig(dataset="texts.txt", disable_quanted_input=True)
    assert rounding.to_weight_only().algorithm_args["enable_quanted_input"] is False
    assert rounding.to_weight_only().scheme == "asym"
    assert rounding.to_calibration() == {"file": "texts.txt", "samples": 512, "length": 2048}


def test_unknown_options_are_refused_with_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'group_size'\?\): expected one of"):
        RtnConfig.from_dict({"groupsize": 32})
