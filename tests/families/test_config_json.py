"""config.json means what transformers makes of it, or is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from neuralchat_lite.errors import CheckpointError, UnsupportedModelError
from neuralchat_lite.families.config_json import parse_architecture
from neuralchat_lite.families.rope import RotaryTable
from neuralchat_lite.families.table import FAMILIES

SMALL = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 30,
    "num_attention_heads": 32,
    "max_position_embeddings": 512,
}
YARN = {"rope_type": "yarn", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def as_transformers_reads_it(config: dict[str, Any], tmp_path: Any) -> Any:
    from transformers import AutoConfig

    (tmp_path / "config.json").write_text(json.dumps(config))
    return AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"sliding_window": 100},
        {"sliding_window": None},
        {"sliding_window": 100, "use_sliding_window": False},
        {"sliding_window": 100, "use_sliding_window": True},
        {"sliding_window": 100, "use_sliding_window": True, "max_window_layers": 3},
        {"sliding_window": 100, "use_sliding_window": True, "max_window_layers": 0},
        {"use_sliding_window": True},
    ],
    ids=lambda keys: "+".join(f"{k}={v}" for k, v in keys.items()) or "none",
)
def test_each_layer_sees_what_it_sees_in_transformers(model_type, keys, tmp_path):
    config = SMALL | {"model_type": model_type, "num_key_value_heads": 4, "head_dim": 8} | keys
    theirs = as_transformers_reads_it(config, tmp_path)
    window = getattr(theirs, "sliding_window", None)
    kinds = getattr(theirs, "layer_types", None)
    if model_type == "llama":
        want = (None,) * 30  # its attention has no window, whatever the file says
    elif kinds is None:
        want = (window,) * 30
    else:
        want = tuple(window if kind == "sliding_attention" else None for kind in kinds)
    assert parse_architecture(config).windows == want


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_missing_keys_have_the_defaults_of_the_family(model_type, tmp_path):
    config = {k: v for k, v in SMALL.items() if k != "max_position_embeddings"}
    config = config | {"model_type": model_type}
    ours, theirs = parse_architecture(config), as_transformers_reads_it(config, tmp_path)
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // 32
    assert ours.kv_heads == (theirs.num_key_value_heads or 32)
    assert ours.head_dim == head_dim
    assert ours.max_positions == theirs.max_position_embeddings
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.tied == theirs.tie_word_embeddings


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": 5e5},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rope_scaling": YARN},
        {"rope_scaling": YARN | {"type": "linear"}},
        {"rope_scaling": YARN, "original_max_position_embeddings": 128},
        {"rope_scaling": LLAMA3, "original_max_position_embeddings": 128, "rope_theta": 5e5},
        {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}, "rope_theta": 7.0},
        {"rope_scaling": YARN | {"beta_fast": 16.0, "attention_factor": 1.5}},
        {"partial_rotary_factor": None},
    ],
    ids=str,
)
def test_every_spelling_of_rope_gives_the_angles_of_transformers(keys, tmp_path):
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = SMALL | {"model_type": "llama", "num_attention_heads": 4} | keys
    theirs = LlamaRotaryEmbedding(as_transformers_reads_it(config, tmp_path))
    positions = torch.arange(300)[None]
    cos, sin = theirs(torch.zeros(1), positions)
    ours = RotaryTable(parse_architecture(config)).upto(300)
    torch.testing.assert_close(ours[0][:300], cos[0, :, :8], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours[1][:300], sin[0, :, :8], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"model_type": "gpt2"}, UnsupportedModelError, "model_type 'gpt2'.*expected one of"),
        ({"hidden_act": "gelu"}, UnsupportedModelError, "hidden_act 'gelu'.*'silu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedModelError, "'gptq'"),
        ({"quantization_config": "awq"}, UnsupportedModelError, "'awq'.*use the original"),
        ({"hidden_size": None}, CheckpointError, "hidden_size must be a positive integer"),
        ({"num_hidden_layers": True}, CheckpointError, "got True"),
        ({"num_key_value_heads": 5}, CheckpointError, "32 is not a multiple.* 5"),
        ({"head_dim": 7}, UnsupportedModelError, "head_dim 7 is odd"),
        ({"rms_norm_eps": "1e-5"}, CheckpointError, "rms_norm_eps must be a positive number"),
        ({"rope_theta": "abc"}, CheckpointError, "rope_theta must be a positive number"),
        ({"rope_scaling": [1]}, CheckpointError, "rope_scaling must be an object"),
        ({"rope_scaling": {"type": "dynamic"}}, UnsupportedModelError, "rope_type 'dynamic'"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
            UnsupportedModelError,
            "separate rope_parameters for .'full_attention'.",
        ),
        ({"partial_rotary_factor": 0.5}, UnsupportedModelError, "partial_rotary_factor 0.5"),
        (
            {"partial_rotary_factor": 1.0, "rope_parameters": {"partial_rotary_factor": 0.5}},
            UnsupportedModelError,
            "partial_rotary_factor 0.5",
        ),
        ({"tie_word_embeddings": "yes"}, CheckpointError, "must be true or false, got 'yes'"),
        ({"eos_token_id": "2"}, CheckpointError, "eos_token_id must be a token id, got '2'"),
        ({"eos_token_id": [2, -1]}, CheckpointError, "eos_token_id must be a token id, got -1"),
        ({"model_type": "mistral", "sliding_window": True}, CheckpointError, "sliding_window"),
        ({"model_type": "mistral", "layer_types": ["x"]}, CheckpointError, "a list of 30"),
        (
            {
                "model_type": "mistral",
                "sliding_window": None,
                "layer_types": ["sliding_attention"] * 30,
            },
            CheckpointError,
            "sliding_window must be a number, as layer_types has sliding_attention",
        ),
        (
            {"model_type": "mistral", "sliding_window": None, "layer_types": []},
            CheckpointError,
            "a list of 30",
        ),
        (
            {"model_type": "mistral", "layer_types": ["linear_attention"] * 30},
            UnsupportedModelError,
            "linear_attention",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_run_is_refused(keys, error, message):
    config = SMALL | {"model_type": "llama", "num_key_value_heads": 4, "head_dim": 8}
    with pytest.raises(error, match=message):
        parse_architecture(config | keys)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize(
    "key",
    [
        "attention_bias",
        "attention_dropout",
        "bos_token_id",
        "eos_token_id",
        "hidden_act",
        "initializer_range",
        "layer_types",
        "max_position_embeddings",
        "max_window_layers",
        "mlp_bias",
        "pad_token_id",
        "partial_rotary_factor",
        "pretraining_tp",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "tie_word_embeddings",
        "torch_dtype",
        "use_cache",
        "use_sliding_window",
    ],
)
def test_a_null_means_the_default(model_type, key):
    config = SMALL | {"model_type": model_type}
    without = {name: value for name, value in config.items() if name != key}
    assert parse_architecture(config | {key: None}) == parse_architecture(without)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_null_number_of_key_value_heads_is_that_of_heads(model_type):
    config = SMALL | {"model_type": model_type, "num_key_value_heads": None}
    assert parse_architecture(config).kv_heads == config["num_attention_heads"]


def test_a_null_quantization_config_is_none():
    assert parse_architecture(SMALL | {"model_type": "llama", "quantization_config": None})


def test_yarn_with_crossed_bounds_is_refused():
    keys = {"rope_scaling": YARN | {"beta_fast": 1.0, "beta_slow": 32.0}}
    with pytest.raises(CheckpointError, match="beta_fast above beta_slow"):
        RotaryTable(parse_architecture(SMALL | {"model_type": "llama"} | keys))


def test_end_of_text_ids_come_from_the_generation_config_first():
    config = SMALL | {"model_type": "llama", "eos_token_id": 2}
    assert parse_architecture(config).eos_ids == (2,)
    assert parse_architecture(config, {"eos_token_id": [5, 6]}).eos_ids == (5, 6)
    assert parse_architecture(config, {"eos_token_id": None}).eos_ids == (2,)
