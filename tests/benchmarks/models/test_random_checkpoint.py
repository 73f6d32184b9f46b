"""Random models of real shapes: the same everywhere, whole or not there."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.models.kept import COMPLETE
from benchmarks.models.random_checkpoint import random_model
from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.checkpoints.random_weights import RandomCheckpoint


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_a_shape_gives_the_same_bytes_wherever_it_is_written(tmp_path: Path) -> None:
    first, second = (random_model("tiny", tmp_path / name) for name in "ab")
    assert first != second and digests(first) == digests(second)


def test_transformers_loads_a_random_checkpoint_with_the_generated_values(
    tmp_path: Path, tiny_shape: dict[str, Any]
) -> None:
    folder = random_model("tiny", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    source = RandomCheckpoint(tiny_shape)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, source.weight(name)), name


def test_the_tokenizer_has_a_word_for_each_id(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(random_model("tiny", tmp_path))
    words = ["<unk>", "<s>", "</s>", *(f"t{token}" for token in range(3, 96))]
    assert tokenizer(" ".join(words))["input_ids"] == list(range(96))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_interrupted_writing_leaves_nothing_that_is_taken_for_a_model(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        random_model("tiny", tmp_path, interrupt)
    assert list(tmp_path.glob("*/*")) == []
    open_checkpoint(random_model("tiny", tmp_path))


def test_a_folder_without_its_mark_is_written_again(tmp_path: Path) -> None:
    folder = random_model("tiny", tmp_path)
    whole = digests(folder)
    (folder / COMPLETE).unlink()
    (folder / "model.safetensors").write_bytes(b"cut short")
    assert digests(random_model("tiny", tmp_path)) == whole
