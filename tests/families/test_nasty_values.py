"""Any value under any key of config.json gives a model that runs, or one error of ours, at once."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import neuralchat_lite
from neuralchat_lite.errors import CheckpointError, NeuralchatError
from neuralchat_lite.families.config_json import parse_architecture
from neuralchat_lite.families.rope import RotaryTable

NANO = Path(__file__).parents[2] / "examples/nano/model"
SMALL: dict[str, Any] = {
    "model_type": "mistral",
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": 16,
    "use_sliding_window": True,
    "max_window_layers": 1,
    "layer_types": None,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "partial_rotary_factor": None,
    "original_max_position_embeddings": None,
    "rope_scaling": None,
    "rope_parameters": None,
    "quantization_config": None,
    "quantization": None,
}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 2.0, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0}
    | {"mscale_all_dim": 1.0, "attention_factor": None, "truncate": True},
}
SHARED_BY_SCALINGS = {"original_max_position_embeddings": 64, "rope_theta": 1e4, "type": None}
INTEGERS = [0, -1, 1, 2, 3, 2**31 - 1, 2**31, 2**63, 10**400]
NUMBERS = [0.5, -0.0, 1.0000001, 1e308, -1e308, 1e-320, float("inf"), float("nan")]
TEXTS = ["", "a", "4", "\x00\x1b[31m", "x" * 100_000]
OTHERS = [None, True, False, [], [1], [True], [None], [[[]]], {}, {"a": 1}, {"a": {"b": []}}]
NASTY = [*INTEGERS, *NUMBERS, *TEXTS, *OTHERS]


def outcome(config: dict[str, Any]) -> str | None:
    """None when a config can be run, else the message of the error, which is ours and short."""
    try:
        architecture = parse_architecture(config)
        assert len(architecture.windows) < 10_000
        if architecture.head_dim < 1000:  # another one is refused by the tensors' shapes
            for table in RotaryTable(architecture).upto(300):
                assert table.isfinite().all(), config
    except NeuralchatError as error:
        return str(error)
    return None


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_any_value_of_any_key_is_read_or_refused_by_name(model_type):
    for key in SMALL:
        for value in NASTY:
            message = outcome(SMALL | {"model_type": model_type, key: value})
            assert message is None or len(message) < 600, key


@pytest.mark.parametrize("kind", SCALINGS)
def test_any_value_of_any_rope_parameter_is_read_or_refused_by_name(kind):
    given = {"rope_type": kind} | SCALINGS[kind] | SHARED_BY_SCALINGS
    for spelling in ("rope_scaling", "rope_parameters"):
        for key in given:
            for value in NASTY:
                message = outcome(SMALL | {spelling: given | {key: value}})
                assert message is None or len(message) < 600, key


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "layers": ({"num_hidden_layers": 2**31 - 1}, "num_hidden_layers must be at most 1000"),
    "layers beyond 64 bits": ({"num_hidden_layers": 2**63}, "num_hidden_layers must be at most"),
    "window": ({"sliding_window": 2**31}, "sliding_window must be at most 2147483647"),
    "window as text": ({"sliding_window": "4096"}, "sliding_window must be a positive integer"),
    "window 0": ({"sliding_window": 0}, "sliding_window must be a positive integer"),
    "head size": ({"head_dim": 10**400}, "head_dim must be at most"),
    "no type": (
        {"rope_scaling": {"rope_type": "", "factor": 1.0}},
        "rope_type '' is not supported",
    ),
    "theta 1": ({"rope_theta": 1}, "rope_theta must be a positive number above 1, got 1"),
    "theta 1 in yarn": (
        {"rope_scaling": SCALINGS["yarn"] | {"type": "yarn", "rope_theta": 1.0}},
        "rope_theta must be a positive number above 1",
    ),
    "an infinite factor": (
        {"rope_scaling": {"type": "linear", "factor": float("inf")}},
        "factor must be a positive number, got inf",
    ),
    "a boolean factor": (
        {"rope_scaling": {"type": "linear", "factor": True}},
        "factor must be a positive number, got True",
    ),
    "a text in yarn": (
        {"rope_scaling": SCALINGS["yarn"] | {"type": "yarn", "beta_fast": "32"}},
        "beta_fast must be a positive number, got '32'",
    ),
    "a list in yarn": (
        {"rope_scaling": SCALINGS["yarn"] | {"type": "yarn", "attention_factor": [1]}},
        "attention_factor must be a positive number",
    ),
    "equal bounds in llama3": (
        {"rope_scaling": SCALINGS["llama3"] | {"type": "llama3", "low_freq_factor": 4.0}},
        "high_freq_factor above low_freq_factor",
    ),
    "angles beyond fp32": (
        {"rope_scaling": {"type": "yarn", "factor": 1e-29, "attention_factor": 1e29}},
        "not finite within 512 positions",
    ),
    "an empty activation": ({"hidden_act": []}, r"hidden_act \[\] is not supported"),
    "quantized by MLX": ({"quantization": {"bits": 4}}, "already quantized .quantization"),
}


@pytest.mark.parametrize(("keys", "rule"), REFUSED.values(), ids=REFUSED)
def test_an_impossible_value_is_refused_with_its_rule(keys, rule):
    with pytest.raises(CheckpointError, match=rule):
        RotaryTable(parse_architecture(SMALL | keys))


def test_a_huge_number_of_layers_takes_no_memory():
    tracemalloc.start()
    try:
        for layers in (2**31 - 1, 2**63, 10**400):
            with pytest.raises(CheckpointError):
                parse_architecture(SMALL | {"num_hidden_layers": layers})
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_end_ids_outside_the_vocabulary_are_ignored_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert parse_architecture(SMALL | {"eos_token_id": [2, 64, 2**63]}).eos_ids == (2,)
    [warning] = caplog.messages
    assert "eos_token_id names [64, 9223372036854775808]" in warning and "64 tokens" in warning


def test_a_wrong_end_id_names_the_file_that_has_it():
    with pytest.raises(CheckpointError, match=r"^generation_config\.json: eos_token_id must be"):
        parse_architecture(SMALL, {"eos_token_id": [[2]]})


LOADED: list[dict[str, Any]] = [
    {"sliding_window": 2**31},
    {"sliding_window": 2**31 - 1},
    {"num_hidden_layers": 3},
    {"num_hidden_layers": 2**63},
    {"max_position_embeddings": 2**31 - 1},
    {"vocab_size": 2**62},
    {"hidden_size": 2**31 - 1},
    {"rms_norm_eps": 1e29},
    {"eos_token_id": [10**30]},
    {"rope_parameters": {"rope_type": "yarn", "factor": 1e29}},
    {"rope_parameters": {"rope_type": "yarn", "factor": 1e-29}},
    {"torch_dtype": 5, "dtype": [None]},
]


@pytest.mark.parametrize("keys", LOADED, ids=str)
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_a_model_with_such_a_value_gives_a_token_or_an_error_of_ours(keys, file, tmp_path):
    folder = shutil.copytree(NANO, tmp_path / "model")
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | keys))
    with contextlib.suppress(NeuralchatError):
        model = neuralchat_lite.load(folder, dtype="fp32")
        assert len(model.generate("1+1=", max_new_tokens=1).token_ids) == 1
