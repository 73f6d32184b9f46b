"""`load(engine=...)`: the same Model on every engine, and what an engine cannot honour refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import neuralchat_lite as ncl
from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.engines.engine import quantized_precision, weight_bytes
from neuralchat_lite.engines.itrex import HONOURED, open_itrex
from neuralchat_lite.environments.environment import ROOT_VARIABLE
from neuralchat_lite.errors import ConfigError, EngineError
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig

from .conftest import request_for

PROMPT = "Once upon a time"


@pytest.fixture
def no_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "environments"))
    return tmp_path / "environments"


def test_the_torch_engine_speaks_as_the_native_one(stories: Path) -> None:
    native = ncl.load(stories, dtype="fp32")
    model = ncl.load(stories, engine="torch", dtype="fp32")
    options = {"max_new_tokens": 40, "stop": ["Lily"]}
    want, got = native.generate(PROMPT, **options), model.generate(PROMPT, **options)
    assert (got.text, got.token_ids, got.finish_reason) == (
        want.text,
        want.token_ids,
        want.finish_reason,
    )
    streamed = "".join(piece.text for piece in model.stream(PROMPT, **options))
    assert streamed == want.text


def test_a_conversation_on_the_torch_engine_keeps_its_cache(stories: Path) -> None:
    texts = []
    for options in ({"dtype": "fp32"}, {"dtype": "fp32", "engine": "torch"}):
        talk = ncl.load(stories, **options).conversation(max_new_tokens=20)
        replies = [talk.say(line) for line in ("A cat.", "A dog.")]
        assert replies[1].timings.cached_tokens > 0
        texts.append([reply.text for reply in replies])
    assert texts[0] == texts[1]


def test_the_report_says_which_engine_runs(stories: Path) -> None:
    model = ncl.load(stories, engine="torch")
    report = model.report()
    assert report["engine"] == "torch" and report["compute_dtype"] == "bf16"
    assert report["versions"]["torch"] == torch.__version__
    assert report["weights"] == "as in the checkpoint" and model.config is None
    assert ncl.load(stories, dtype="fp32").report()["engine"] == "native"


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"engine": "vllm"}, "engine must be one of native, torch, ipex, itrex, got 'vllm'"),
        ({"engine": "torch", "dtype": "int4"}, "dtype must be 'fp32' or 'bf16', got 'int4'"),
        (
            {"engine": "torch", "quantization_config": {"group_size": 64}},
            "the checkpoint's own weights, not quantized ones with group_size: give",
        ),
        ({"engine": "torch", "compute_dtype": "auto"}, "not quantized ones with compute_dtype"),
        (
            {"engine": "ipex", "compute_dtype": "auto"},
            "'ipex' does not support compute_dtype='auto', expected one of 'bf16', 'fp32', 'int8'",
        ),
        (
            {"engine": "itrex", "compute_dtype": "auto"},
            "'itrex' does not support compute_dtype='auto', expected one of 'fp32', 'bf16', 'int8'",
        ),
        ({"engine": "torch", "threads": 0}, "threads must be an integer from 1 to 1024, got 0"),
        ({"engine": "torch", "context_length": 513}, "512 positions, got 513"),
        (
            {"engine": "torch", "adapters": ["lora"]},
            "'torch' reads a checkpoint from its folder, but adapters are merged in memory",
        ),
        ({"engine": "itrex", "dtype": "fp32"}, "'itrex' always quantizes, but dtype='fp32'"),
        (
            {"engine": "itrex", "quantization_config": {"lm_head": "int4"}},
            "'itrex' does not support lm_head='int4', expected one of 'fp32'",
        ),
        (
            {"engine": "itrex", "quantization_config": {"modules_to_not_convert": ["down_proj"]}},
            r"'itrex' does not support modules_to_not_convert=\['down_proj'\]",
        ),
        (
            {"engine": "ipex", "quantization_config": {"overrides": {"lm_head": "int4"}}},
            "'ipex' quantizes all matrices alike: leave overrides out",
        ),
        (
            {"engine": "ipex", "quantization_config": {"weight_dtype": "int4_fullrange"}},
            "'ipex' does not support weight_dtype='int4_fullrange', expected one of 'int4_clip', "
            "'int8'",
        ),
        (
            {"engine": "ipex", "quantization_config": {"lm_head": "int4", "weight_dtype": "int8"}},
            "'ipex' does not support lm_head='int4', expected one of 'int8'",
        ),
    ],
)
def test_what_an_engine_cannot_honour_is_refused_by_name(
    stories: Path, no_environments: Path, options: dict[str, Any], rule: str
) -> None:
    with pytest.raises(ConfigError, match=rule):
        ncl.load(stories, **options)


@pytest.mark.parametrize("engine", ["ipex", "itrex"])
def test_an_engine_that_is_not_installed_says_what_to_run(
    stories: Path, no_environments: Path, engine: str
) -> None:
    config = {"weight_dtype": "int8", "compute_dtype": "fp32"}
    with pytest.raises(EngineError, match=rf"run `neuralchat-lite engines setup {engine}` \(.* GB"):
        ncl.load(stories, config, engine=engine)


def test_a_quantized_folder_is_refused_by_other_engines(stories: Path, tmp_path: Path) -> None:
    folder = ncl.quantize(stories, output=tmp_path / "quantized")
    with pytest.raises(
        ConfigError, match=r"engine 'torch' runs original checkpoints, but .* native"
    ):
        ncl.load(folder, engine="torch")


def test_a_default_that_an_engine_lacks_becomes_its_own_with_a_note() -> None:
    precision = quantized_precision("itrex", WeightOnlyQuantConfig(compute_dtype="int8"), HONOURED)
    assert precision.options is not None and precision.notes is not None
    assert precision.options["scale_dtype"] == precision.options["lm_head"] == "fp32"
    assert (
        precision.notes["scale_dtype"]
        == "fp32: engine 'itrex' does not support 'fp16', the default"
    )
    assert set(precision.notes) == {"scale_dtype", "lm_head", "scheme", "weight_dtype"}


def test_bytes_of_quantized_weights_are_counted_one_by_one(stories: Path) -> None:
    config = WeightOnlyQuantConfig(group_size=64, compute_dtype="int8")
    precision = quantized_precision("itrex", config, HONOURED)
    architecture = open_checkpoint(stories).architecture
    nibbles = scales = floats = 0
    for spec in architecture.tensors():
        rows, cols = spec.shape[0], spec.shape[-1]
        if spec.role == "linear":
            nibbles += rows * cols
            scales += rows * len(range(0, cols, 64))
        elif spec.role == "lm_head":
            floats += rows * cols
    assert weight_bytes(architecture, precision) == nibbles // 2 + 4 * scales + 4 * floats


def test_itrex_is_refused_a_context_beyond_a_sliding_window(windowed_model: Path) -> None:
    asked = {"compute_dtype": "fp32"}
    with pytest.raises(ConfigError, match=r"exceeds the window of 8: load with context_length=8"):
        open_itrex(request_for(windowed_model, asked=asked, context_length=9))


@pytest.mark.parametrize("kind", [("int4_clip", "fp32"), ("int8", "int8")])
def test_itrex_is_refused_groups_that_are_not_full(stories: Path, kind: tuple[str, str]) -> None:
    config = dict(zip(("weight_dtype", "compute_dtype"), kind, strict=True))
    with pytest.raises(ConfigError, match=r"not a multiple of 32, and .*down_proj.weight has 172"):
        ncl.load(stories, config, engine="itrex")
