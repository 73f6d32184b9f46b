"""Remembered keys and values on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import neuralchat_lite as ncl
from neuralchat_lite.generation.prefix_store import page_digests
from neuralchat_lite.generation.prompt_cache_file import PURPOSE

NANO = Path(__file__).parents[2] / "examples/nano/model"
PROMPT = [5 + n % 40 for n in range(200)]  # three full pages


@pytest.fixture
def load(tmp_path: Path) -> Any:
    return lambda *config, **options: ncl.load(
        NANO, *(config or ("int4",)), cache_dir=tmp_path / "cache", **options
    )


def test_another_run_begins_behind_what_was_saved(load: Any, tmp_path: Path) -> None:
    model, file = load(), tmp_path / "prompts.safetensors"
    want = model.generate(PROMPT, max_new_tokens=8, ignore_eos=True)
    assert want.timings.cached_tokens == 0
    assert model.save_prompt_cache(file) == 3
    other = load()
    assert other.load_prompt_cache(file) == other.load_prompt_cache(str(file)) == 3
    again = other.generate(PROMPT, max_new_tokens=8, ignore_eos=True)
    assert again.timings.cached_tokens == 192
    assert again.token_ids == want.token_ids
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


def test_as_many_of_the_latest_as_fit_are_read(load: Any, tmp_path: Path) -> None:
    model, file = load(), tmp_path / "prompts.safetensors"
    model.generate(PROMPT, max_new_tokens=1)
    model.save_prompt_cache(file)
    page = model.report()["scheduler"]["kv_bytes"] // 3
    small = load(kv_memory=2 * page)
    assert small.load_prompt_cache(file) == 2
    assert len(small.scheduler.batch.store.find(page_digests(PROMPT))) == 2


@pytest.mark.parametrize(
    ("config", "options", "match"),
    [
        (("int8",), {}, "its weights_sha256 is"),
        (("int4",), {"compute_dtype": "int8"}, "its compute_dtype is 'bf16', and this model has"),
        (("int4",), {"kv_cache_dtype": "int8"}, "its kv_cache_dtype is 'bf16'"),
    ],
)
def test_the_file_of_another_model_is_refused(
    load: Any, tmp_path: Path, config: Any, options: Any, match: str
) -> None:
    model, file = load(), tmp_path / "prompts.safetensors"
    model.generate(PROMPT, max_new_tokens=1)
    model.save_prompt_cache(file)
    other = load(*config, **options)
    with pytest.raises(ncl.CacheError, match=match):
        other.load_prompt_cache(file)
    assert len(other.scheduler.batch.store) == 0


def test_what_is_no_prompt_cache_is_refused(load: Any, tmp_path: Path) -> None:
    model, file = load(), tmp_path / "prompts.safetensors"
    model.generate(PROMPT, max_new_tokens=1)
    with pytest.raises(ncl.CacheError, match=r"is no prompt cache that can be read"):
        model.load_prompt_cache(file)
    model.save_prompt_cache(file)
    whole, tensors = file.read_bytes(), load_file(file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    file.write_bytes(whole[:-5])
    with pytest.raises(ncl.CacheError, match=r"is no prompt cache that can be read"):
        model.load_prompt_cache(file)
    save_file(tensors, file)
    with pytest.raises(ncl.CacheError, match=r"is no prompt cache: give a file that"):
        model.load_prompt_cache(file)
    name = next(iter(tensors))
    for wrong in ({"no name": tensors[name]}, {name[:-1] + "7": tensors[name]}):
        save_file(wrong, file, metadata)
        with pytest.raises(ncl.CacheError, match=r"has no name of a page"):
            model.load_prompt_cache(file)
    save_file({name: tensors[name][:1].clone()}, file, metadata)
    with pytest.raises(ncl.CacheError, match=r"expected torch.uint8"):
        model.load_prompt_cache(file)
    assert PURPOSE in metadata
    with pytest.raises(ncl.CacheError, match=r"cannot be written to"):
        model.save_prompt_cache(tmp_path / "none" / "file")


def test_a_model_whose_weights_have_no_digest_is_refused(load: Any, tmp_path: Path) -> None:
    model = ncl.load(NANO, dtype="fp32")
    for call in (model.save_prompt_cache, model.load_prompt_cache):
        with pytest.raises(ncl.ConfigError, match="those of a quantized folder"):
            call(tmp_path / "file")
