"""The arguments of `from_pretrained`: what each means, and which are refused."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from neuralchat_lite.errors import CheckpointError, ConfigError
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.transformers.arguments import HONOURED, WITHOUT_EFFECT
from neuralchat_lite.transformers.auto import AutoModelForCausalLM
from neuralchat_lite.transformers.configs import GPTQConfig, RtnConfig

from .conftest import NANO

pytestmark = pytest.mark.usefixtures("quantized_once")


def load(**options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(NANO, **options)


@pytest.mark.parametrize(
    ("options", "weights", "compute"),
    [
        ({}, None, "fp32"),
        ({"dtype": torch.bfloat16}, None, "bf16"),
        ({"torch_dtype": "bfloat16"}, None, "bf16"),
        ({"torch_dtype": torch.float32}, None, "fp32"),
        ({"dtype": "auto"}, None, "bf16"),  # the checkpoint's own
        ({"load_in_4bit": True}, "int4", "bf16"),
        ({"load_in_8bit": True}, "int8", "bf16"),
        ({"load_in_4bit": False, "load_in_8bit": False}, None, "fp32"),
        ({"quantization_config": WeightOnlyQuantConfig(weight_dtype="int8")}, "int8", "bf16"),
        ({"quantization_config": {"weight_dtype": "int4_fullrange"}}, "int4_fullrange", "bf16"),
        ({"quantization_config": RtnConfig(bits=8, compute_dtype="int8")}, "int8", "int8"),
        ({"quantization_config": RtnConfig(bits=4, compute_dtype="auto")}, "int4_clip", "int8"),
        ({"device_map": "auto"}, None, "fp32"),
        ({"device_map": {"": "cpu:0"}}, None, "fp32"),
        ({"adapters": None, "subfolder": "", "force_download": False}, None, "fp32"),
        ({"quantization_config": None}, None, "fp32"),
    ],
    ids=str,
)
def test_weights_and_precision_are_those_asked_for(
    options: dict[str, Any], weights: str | None, compute: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load(**options)
    found = model.quantization_config
    assert (found.weight_dtype if found else None) == weights
    assert model.native.report()["compute_dtype"] == compute


def test_switches_without_a_meaning_are_named_in_one_warning() -> None:
    switches = {"use_neural_speed": True, "use_llm_runtime": False, "trust_remote_code": True}
    with pytest.warns(UserWarning, match="no effect here") as caught:
        load(load_in_4bit=True, **switches)
    [warning] = caught
    named = str(warning.message).partition("here: ")[2]
    assert named == "trust_remote_code, use_llm_runtime, use_neural_speed"
    assert warning.filename == __file__


def test_a_dtype_beside_a_quantization_is_said_to_have_no_effect() -> None:
    with pytest.warns(UserWarning, match="dtype='bf16' has no effect on a quantized model"):
        model = load(load_in_4bit=True, torch_dtype=torch.bfloat16)
    assert model.quantization_config.weight_dtype == "int4"


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"quantisation_config": None}, r"did you mean 'quantization_config'\?.*expected one of"),
        ({"load_in_4bits": True}, "did you mean 'load_in_4bit'"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "load_in_4bit and load_in_8bit both say"),
        (
            {"load_in_4bit": True, "quantization_config": RtnConfig()},
            "load_in_4bit and quantization_config both say how to quantize: give one",
        ),
        ({"quantization_config": 4}, "got int: import one from"),
        (
            {"quantization_config": GPTQConfig(dataset="nowhere.jsonl")},
            "the calibration file nowhere.jsonl cannot be read",
        ),
        (
            {"quantization_config": WeightOnlyQuantConfig(algorithm="GPTQ")},
            "algorithm='GPTQ' needs texts to calibrate with",
        ),
        ({"device_map": "cuda:0"}, "'cuda:0' names a device other than the CPU"),
        ({"device_map": {"": 0}}, "names a device other"),
        ({"subfolder": "x"}, "subfolder is not supported: give the folder itself"),
        ({"generation_config": {"max_length": 20}}, "set model.generation_config afterwards"),
        ({"adapters": "sft"}, r"write it as \['sft'\]"),
        ({"dtype": torch.float16}, "too small a range for activations: use torch.bfloat16"),
        ({"dtype": "int4"}, "for int4 or int8 give a quantization_config"),
        ({"dtype": torch.float32, "torch_dtype": torch.bfloat16}, "differ: give one"),
        ({"revision": "main"}, "only hub names have revisions"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(options: dict[str, Any], rule: str) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=rule):
        load(**options)


def test_every_argument_is_honoured_or_without_effect() -> None:
    assert not set(HONOURED) & WITHOUT_EFFECT


@pytest.mark.parametrize("name", ["model_file", "gguf_file"])
def test_a_file_that_a_folder_does_not_have_is_refused_by_name(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"model.gguf is not a file, and .* no other model"):
        AutoModelForCausalLM.from_pretrained(NANO, **{name: "model.gguf"})
