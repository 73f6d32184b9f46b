import dataclasses
import itertools
import warnings

import numpy as np
import pytest
import torch

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig

OPTIONS = {
    "weight_dtype": ["int4", "int4_clip", "int4_fullrange", "int8"],
    "compute_dtype": ["bf16", "fp32", "auto", "int8"],
    "group_size": [32, 64, 128, -1],
    "scheme": ["sym", "asym", "affine"],
    "scale_dtype": ["fp16", "bf16", "fp32"],
    "lm_head": ["int4", "int8"],
    "modules_to_not_convert": [(), ("lm_head",)],
}


def test_every_combination_is_valid_and_round_trips():
    for values in itertools.product(*OPTIONS.values()):
        options = dict(zip(OPTIONS, values, strict=True))
        config = WeightOnlyQuantConfig(**options)
        assert {name: getattr(config, name) for name in options} == options
        assert WeightOnlyQuantConfig.from_dict(config.to_dict()) == config
        assert WeightOnlyQuantConfig.from_json(config.to_json()) == config


def test_defaults_are_those_of_the_documentation():
    assert WeightOnlyQuantConfig().to_dict() == {
        "weight_dtype": "int4",
        "compute_dtype": "bf16",
        "group_size": 32,
        "scheme": "affine8",
        "scale_dtype": "fp16",
        "algorithm": "RTN",
        "lm_head": "int8",
        "modules_to_not_convert": [],
    }
    nothing = dict.fromkeys(["weight_dtype", "compute_dtype", "scale_dtype", "lm_head"])
    assert WeightOnlyQuantConfig(**nothing) == WeightOnlyQuantConfig()


@pytest.mark.parametrize(
    ("option", "spelling", "name"),
    [
        ("weight_dtype", "int4_clip", "int4_clip"),
        ("weight_dtype", torch.int8, "int8"),
        ("lm_head", "int4_clip", "int4_clip"),
        ("compute_dtype", torch.bfloat16, "bf16"),
        ("compute_dtype", torch.float32, "fp32"),
        ("compute_dtype", torch.int8, "int8"),
        ("scale_dtype", torch.float16, "fp16"),
        ("scale_dtype", torch.bfloat16, "bf16"),
        ("scale_dtype", "float32", "fp32"),
        ("algorithm", "rtn", "RTN"),
    ],
)
def test_spellings_have_one_name(option, spelling, name):
    assert getattr(WeightOnlyQuantConfig(**{option: spelling}), option) == name


@pytest.mark.parametrize("option", ["weight_dtype", "lm_head"])
@pytest.mark.parametrize("name", ["nf4", "fp4", "fp4_e2m1", "fp4_e2m1_bnb", "fp8", "fp8_e4m3"])
def test_float_weights_are_refused_by_name_and_point_to_int4(option, name):
    with pytest.raises(ConfigError, match=f"{option}='{name}' .*int4"):
        WeightOnlyQuantConfig(**{option: name})


def test_settings_of_an_algorithm_are_kept_checked_and_written_only_when_given():
    config = WeightOnlyQuantConfig(algorithm="gptq", algorithm_args={"act_order": True})
    assert config.algorithm_args == {"act_order": True}
    assert WeightOnlyQuantConfig.from_json(config.to_json()) == config
    assert config.bytes_config()["algorithm_args"] == {"act_order": True}
    assert hash(config)
    assert "algorithm_args" not in WeightOnlyQuantConfig(algorithm="gptq").to_dict()
    with pytest.raises(ConfigError, match="must be a dictionary of settings, got 5"):
        WeightOnlyQuantConfig(algorithm="gptq", algorithm_args=5)
    with pytest.raises(ConfigError, match="'iters' is not a setting of RTN: it has none"):
        WeightOnlyQuantConfig(algorithm_args={"iters": 5})
    with pytest.raises(ConfigError, match="batch_size of AUTOROUND must be an integer from 1 on"):
        WeightOnlyQuantConfig(algorithm="autoround", algorithm_args={"batch_size": 0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_dtype": "int3"}, "weight_dtype must be one of .*int3.*mean 'int"),
        ({"compute_dtype": "fp16"}, "compute_dtype='bf16'"),
        ({"compute_dtype": torch.int32}, "compute_dtype must be one of"),
        ({"scale_dtype": "fp8_e8m0"}, "scale_dtype must be one of"),
        ({"scheme": "asymm"}, "scheme must be one of .*did you mean 'asym'"),
        ({"group_size": 48}, "group_size must be 32, 64, 128 or -1"),
        ({"group_size": True}, "group_size must be"),
        ({"group_size": "32"}, "group_size must be"),
        ({"group_size": 32.0}, "group_size must be"),
        ({"modules_to_not_convert": "lm_head"}, "must be a list of module names"),
        ({"modules_to_not_convert": [1]}, "must be a list of module names"),
        ({"wieght_dtype": "int4"}, "'wieght_dtype' is not an option .*mean 'weight_dtype'"),
        ({"use_gmml": True}, "did you mean 'use_ggml'.*expected one of"),
    ],
)
def test_a_bad_value_gives_value_rule_and_remedy(options, message):
    with pytest.raises(ConfigError, match=message):
        WeightOnlyQuantConfig(**options)


def test_legacy_options_are_accepted_with_one_warning_that_names_them():
    with pytest.warns(UserWarning, match="no effect here: tokenizer, use_ggml$") as caught:
        config = WeightOnlyQuantConfig(use_ggml=True, tokenizer=object())
    assert len(caught) == 1
    assert caught[0].filename == __file__  # the caller's line, not ours
    assert config == WeightOnlyQuantConfig()


@pytest.mark.parametrize(
    "promise",
    [{"mse_range": True}, {"use_double_quant": True}, {"use_gptq": True}, {"use_quant": False}],
)
def test_legacy_values_that_would_change_the_weights_are_refused(promise):
    (option,) = promise
    with pytest.raises(ConfigError, match=option):
        WeightOnlyQuantConfig(**promise)
    with pytest.warns(UserWarning, match=option):
        WeightOnlyQuantConfig(**{option: not promise[option]})


def test_skip_modules_mean_modules_to_not_convert():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it has an effect, so there is nothing to warn about
        config = WeightOnlyQuantConfig(llm_int8_skip_modules=["lm_head"])
    assert config == WeightOnlyQuantConfig(modules_to_not_convert=("lm_head",))
    with pytest.raises(ConfigError, match="give one"):
        WeightOnlyQuantConfig(llm_int8_skip_modules=["a"], modules_to_not_convert=["b"])


def test_modules_are_excluded_by_full_name_leading_part_or_trailing_part():
    config = WeightOnlyQuantConfig(
        modules_to_not_convert=["lm_head", "model.layers.1", "mlp.down_proj"]
    )
    assert config.dtype_of("lm_head") is None
    assert config.dtype_of("model.layers.1.mlp.up_proj") is None
    assert config.dtype_of("model.layers.10.mlp.up_proj") == "int4"
    assert config.dtype_of("model.layers.0.mlp.down_proj") is None
    assert config.dtype_of("model.layers.0.mlp.mydown_proj") == "int4"


def test_the_head_has_a_dtype_of_its_own():
    config = WeightOnlyQuantConfig(weight_dtype="int4", lm_head="int8")
    assert config.dtype_of("lm_head") == "int8"
    assert config.dtype_of("model.layers.0.mlp.up_proj") == "int4"


@pytest.mark.parametrize(
    ("weight_dtype", "head", "taken"),
    [
        ("int4", "int8", {"int4": "int8", "int8": "bf16"}),
        ("int4_fullrange", "int4", {"int4_fullrange": "int8", "int4": "int8"}),
        ("int8", "int8", {"int8": "bf16"}),
        ("int8", "int4", {"int8": "bf16", "int4": "int8"}),
    ],
)
def test_auto_takes_8_bits_for_int4_weights_alone(weight_dtype, head, taken):
    config = WeightOnlyQuantConfig(weight_dtype=weight_dtype, lm_head=head, compute_dtype="auto")
    assert config.computes() == taken
    for explicit in ("bf16", "fp32", "int8"):
        same = dataclasses.replace(config, compute_dtype=explicit)
        assert set(same.computes().values()) == {explicit}
    assert config.bytes_config() == same.bytes_config()


def test_a_head_that_is_not_quantized_takes_nothing():
    config = WeightOnlyQuantConfig(compute_dtype="auto", modules_to_not_convert=["lm_head"])
    assert config.computes() == {"int4": "int8"}


def test_only_options_that_decide_bytes_are_in_bytes_config():
    base = WeightOnlyQuantConfig()
    different = {
        option: WeightOnlyQuantConfig(**{option: values[-1]}).bytes_config() != base.bytes_config()
        for option, values in OPTIONS.items()
        if getattr(base, option) != values[-1]
    } | {"lm_head": WeightOnlyQuantConfig(lm_head="int4").bytes_config() != base.bytes_config()}
    assert different == {option: option != "compute_dtype" for option in OPTIONS}


@pytest.mark.parametrize("scheme", ["asym", "affine"])
def test_int4_that_is_not_symmetric_is_the_same_by_both_names(scheme):
    one = WeightOnlyQuantConfig(weight_dtype="int4_clip", scheme=scheme)
    other = WeightOnlyQuantConfig(weight_dtype="int4_fullrange", scheme=scheme)
    assert one.bytes_config() == other.bytes_config()


def test_the_default_scheme_is_that_of_the_weight_types():
    assert WeightOnlyQuantConfig("int4_clip").scheme == "sym"
    assert WeightOnlyQuantConfig("int8").scheme == "sym"
    assert WeightOnlyQuantConfig("int4", scheme="sym").scheme == "sym"
    mixed = WeightOnlyQuantConfig("int8", lm_head="int4")
    assert mixed.settings_of("lm_head").scheme == "affine8"
    assert mixed.settings_of("model.layers.0.mlp.up_proj").scheme == "sym"
    assert WeightOnlyQuantConfig().settings_of("lm_head").scheme == "sym"  # int8
    with pytest.raises(ConfigError, match="'affine8' is for weight_dtype='int4'"):
        WeightOnlyQuantConfig("int4_clip", scheme="affine8")


def test_what_the_first_format_called_int4_is_int4_clip():
    noted = WeightOnlyQuantConfig("int4_clip", lm_head="int4_clip").to_dict()
    old = {**noted, "weight_dtype": "int4", "lm_head": "int4"}
    assert WeightOnlyQuantConfig.from_first_format(old).to_dict() == noted
    assert WeightOnlyQuantConfig("int4_clip").key_config()["weight_dtype"] == "int4"
    assert WeightOnlyQuantConfig("int4_clip").short_name == "int4-g32"


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        WeightOnlyQuantConfig().group_size = 64


@pytest.mark.parametrize("text", ["", "[]", "{", '"int4"'])
def test_text_that_is_no_config_is_refused(text):
    with pytest.raises(ConfigError, match="quantization config is"):
        WeightOnlyQuantConfig.from_json(text)


def test_group_size_may_come_from_numpy():
    assert WeightOnlyQuantConfig(group_size=np.int32(64)).to_json() == (
        WeightOnlyQuantConfig(group_size=64).to_json()
    )


@pytest.mark.parametrize(
    "overrides",
    [
        {"model.layers.0.*": {"weight_dtype": "int8", "scheme": "affine8"}},
        {"model.layers.0.*": {"weight_dtype": "int4_clip", "scheme": "affine8"}},
        {"lm_head": {"scheme": "affine8"}},  # which is int8
    ],
    ids=str,
)
def test_an_override_with_minima_of_8_bits_is_for_int4(overrides):
    with pytest.raises(ConfigError, match=r"overrides\[.*scheme='affine8' is for .*use scheme="):
        WeightOnlyQuantConfig(overrides=overrides)
    lone = {"lm_head": {"scheme": "affine8"}}
    assert WeightOnlyQuantConfig(lm_head="int4", scheme="sym", overrides=lone)
