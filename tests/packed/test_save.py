"""Saving over what is there, as transformers does, unless it is another model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import neuralchat_lite as ncl
from neuralchat_lite.errors import CacheError
from neuralchat_lite.packed.manifest import is_stamped, read_manifest

NANO = Path(__file__).parents[2] / "examples/nano/model"
PROMPT = "12 + 30"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ncl.Model:
    return ncl.load(NANO, "int4", cache_dir=tmp_path_factory.mktemp("cache"))


def answer(model: ncl.Model) -> tuple[int, ...]:
    return model.generate(PROMPT, max_new_tokens=6).token_ids


def test_a_model_is_saved_over_its_own_folder(model: ncl.Model, tmp_path: Path) -> None:
    folder = model.save_pretrained(tmp_path / "saved")
    weights = (folder / "model.safetensors").stat().st_ino
    again = ncl.load(folder, compute_dtype="int8")
    want = answer(again)
    assert again.save_pretrained(folder) == folder
    assert (folder / "model.safetensors").stat().st_ino == weights  # not written again
    assert answer(again) == want
    found = ncl.load(folder)
    assert found.config is not None and found.config.compute_dtype == "int8"
    assert answer(found) == want and is_stamped(folder, read_manifest(folder))
    assert not list(folder.glob(".tmp-*"))


def test_an_earlier_copy_is_replaced_while_a_process_has_it_mapped(
    model: ncl.Model, tmp_path: Path
) -> None:
    folder = model.save_pretrained(tmp_path / "saved")
    (folder / "README.md").write_text("mine")
    (folder / "notes").mkdir()
    earlier = ncl.load(folder)
    want = answer(earlier)
    other = ncl.load(NANO, "int8", cache_dir=tmp_path / "cache")
    other.save_pretrained(folder)
    assert answer(earlier) == want
    found = ncl.load(folder)
    assert found.config is not None and found.config.weight_dtype == "int8"
    assert answer(found) == answer(other)
    assert (folder / "README.md").read_text() == "mine" and (folder / "notes").is_dir()


def test_files_that_are_no_model_are_no_hindrance(model: ncl.Model, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert answer(ncl.load(tmp_path)) == answer(model)


def test_another_model_is_not_replaced(model: ncl.Model, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(NANO, checkpoint)
    before = (checkpoint / "model.safetensors").read_bytes()
    with pytest.raises(CacheError, match="holds another model"):
        model.save_pretrained(checkpoint)
    assert (checkpoint / "model.safetensors").read_bytes() == before
    (tmp_path / "old").mkdir()
    (tmp_path / "old/pytorch_model.bin").write_bytes(b"weights")
    with pytest.raises(CacheError, match="holds another model"):
        model.save_pretrained(tmp_path / "old")
    with pytest.raises(CacheError, match="belongs to the cache"):
        model.save_pretrained(model.folder)
