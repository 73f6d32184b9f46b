"""Random models of real shapes: the same everywhere, whole or not there."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.models import shapes
from neuralchat_lite.checkpoints.checkpoint import RandomCheckpoint, open_checkpoint
from neuralchat_lite.errors import ConfigError

TINY = shapes.shape(64, 128, 2, 4, 2) | {"vocab_size": 96}


@pytest.fixture(autouse=True)
def tiny_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_a_shape_gives_the_same_bytes_wherever_it_is_written(tmp_path: Path) -> None:
    first, second = (shapes.random_model("tiny", tmp_path / name) for name in "ab")
    assert first != second and digests(first) == digests(second)


def test_transformers_loads_a_random_checkpoint_with_the_generated_values(tmp_path: Path) -> None:
    folder = shapes.random_model("tiny", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    source = RandomCheckpoint(TINY)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, source.weight(name)), name


def test_the_tokenizer_has_a_word_for_each_id(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shapes.random_model("tiny", tmp_path))
    words = ["<unk>", "<s>", "</s>", *(f"t{token}" for token in range(3, 96))]
    assert tokenizer(" ".join(words))["input_ids"] == list(range(96))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_interrupted_writing_leaves_nothing_that_is_taken_for_a_model(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shapes.random_model("tiny", tmp_path, interrupt)
    assert list(tmp_path.glob("*/*")) == []
    open_checkpoint(shapes.random_model("tiny", tmp_path))


def test_a_folder_without_its_mark_is_written_again(tmp_path: Path) -> None:
    folder = shapes.random_model("tiny", tmp_path)
    whole = digests(folder)
    (folder / shapes.COMPLETE).unlink()
    (folder / "model.safetensors").write_bytes(b"cut short")
    assert digests(shapes.random_model("tiny", tmp_path)) == whole


def test_the_digest_of_a_checkpoint_is_that_of_its_shape_and_changes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shapes.random_model("tiny", tmp_path)
    assert shapes.checkpoint_digest(folder) == shapes.config_digest(TINY)
    (folder / shapes.COMPLETE).unlink()  # now it is a checkpoint like any other
    as_real = shapes.checkpoint_digest(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 5e5}))
    assert shapes.checkpoint_digest(folder) != as_real


def test_an_unknown_shape_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'13b'.*7b, 1b, 100m.*mistral-7b"):
        shapes.shape_name("13b")
    assert shapes.shape_name("mistral-7b") == "7b"


def test_cleaning_removes_our_models_alone(tmp_path: Path) -> None:
    folder = shapes.random_model("tiny", tmp_path)
    size = sum(path.stat().st_size for path in folder.iterdir())
    others = tmp_path / "mine" / "model" / "weights"
    others.parent.mkdir(parents=True)
    others.write_bytes(b"x")
    (folder.parent / shapes.LITTER / "left").mkdir(parents=True)
    assert shapes.remove_models(tmp_path) == size
    assert others.exists() and not folder.parent.exists()


@pytest.mark.parametrize(("name", "count"), [("7b", 7.24e9), ("1b", 1.10e9)])
def test_a_shape_has_the_parameters_of_its_name(name: str, count: float) -> None:
    tensors = RandomCheckpoint(shapes.SHAPES[name]).architecture.tensors()
    assert sum(math.prod(spec.shape) for spec in tensors) == pytest.approx(count, rel=0.01)
