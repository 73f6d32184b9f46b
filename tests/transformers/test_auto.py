"""Loading a model by `from_pretrained` and by `pipeline`."""

from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import neuralchat_lite as ncl
from neuralchat_lite import loading
from neuralchat_lite.errors import CheckpointError, ConfigError
from neuralchat_lite.transformers.auto import AutoModelForCausalLM, pipeline
from neuralchat_lite.transformers.modeling import NativeForCausalLM

from .conftest import NANO, PROMPTS, Pair

pytestmark = pytest.mark.usefixtures("quantized_once")


def load(**options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(NANO, **options)


def test_a_quantized_folder_loads_as_it_is(tmp_path: Path) -> None:
    folder = ncl.quantize(NANO, {"weight_dtype": "int8", "group_size": 128}, tmp_path / "int8")
    model = AutoModelForCausalLM.from_pretrained(str(folder))
    assert model.quantization_config.group_size == 128
    with pytest.warns(UserWarning, match="no effect on a quantized model"):
        AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto")
    with pytest.raises(ConfigError, match="was quantized with different settings"):
        AutoModelForCausalLM.from_pretrained(folder, load_in_4bit=True)


def test_the_context_is_bounded_by_the_models_positions_alone() -> None:
    model = load()
    assert model.decoder.context_length == model.config.max_position_embeddings > 512
    assert load(context_length=100).decoder.context_length == 100


def test_downloads_lie_where_cache_dir_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0" * 40
    repository = tmp_path / "downloads/models--Intel--neural-chat-7b-v3-2"
    shutil.copytree(NANO, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    model = AutoModelForCausalLM.from_pretrained(
        "Intel/neural-chat-7b-v3-2",
        cache_dir=tmp_path / "downloads",
        local_files_only=True,
        load_in_4bit=True,
    )
    assert model.folder.name.startswith("neural-chat-7b-v3-2-int4")


def test_the_class_is_made_by_from_pretrained_alone() -> None:
    with pytest.raises(TypeError, match=r"use AutoModelForCausalLM\.from_pretrained"):
        AutoModelForCausalLM()
    with pytest.raises(TypeError, match=r"use AutoModelForCausalLM\.from_pretrained"):
        NativeForCausalLM.from_pretrained(NANO)


def test_adapters_are_looked_for_as_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def resolve(name: str, *arguments: Any, **where: Any) -> Any:
        asked.append((name, *arguments, where["cache_dir"], where["local_files_only"]))
        raise CheckpointError("seen")

    monkeypatch.setattr(loading, "resolve", resolve)
    with pytest.raises(CheckpointError, match="seen"):
        load(adapters=["org/sft"], token="secret", cache_dir="here", local_files_only=True)
    assert asked == [("org/sft", None, "secret", "here", True)]


def test_a_pipeline_takes_the_model(nano: Pair, caplog: pytest.LogCaptureFixture) -> None:
    hf.utils.logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        speak = pipeline("text-generation", model=nano.ours, tokenizer=nano.tokenizer)
        options = {"max_new_tokens": 8, "do_sample": False}
        answers = speak(list(PROMPTS[:3]), batch_size=3, **options)
    assert "not supported" not in caplog.text
    for prompt, [answer] in zip(PROMPTS, answers, strict=False):
        ids = nano.theirs.generate(**nano.batch(prompt), **options)
        assert answer["generated_text"] == nano.tokenizer.decode(ids[0], skip_special_tokens=True)


def test_a_pipeline_by_name_runs_on_our_kernels(
    nano: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEURALCHAT_LITE_CACHE", str(tmp_path))
    speak = pipeline("text-generation", str(NANO), load_in_4bit=True)
    assert speak.model.quantization_config.weight_dtype == "int4"
    [answer] = speak(PROMPTS[3], max_new_tokens=5, do_sample=False)
    assert answer["generated_text"].startswith(PROMPTS[3])
    with pytest.raises(ConfigError, match="ask for 'text-generation'"):
        pipeline("fill-mask", str(NANO))
