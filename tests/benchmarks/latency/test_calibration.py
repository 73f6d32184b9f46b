"""Calibrated quantizing in a process of its own, and what is left when it is killed."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from benchmarks.latency.calibration import differing, finished_blocks, run, write_texts
from benchmarks.models import shapes
from benchmarks.models.random_checkpoint import random_model
from benchmarks.models.shapes import shape
from neuralchat_lite.errors import CheckpointError

LAYERS = 6


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny = shape(128, 256, LAYERS, 4, 2) | {"vocab_size": 96}
    monkeypatch.setitem(shapes.SHAPES, "tiny", tiny)
    return random_model("tiny", tmp_path / "models")


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    texts = write_texts(tmp_path / "texts.txt", 96, 600)
    asked = {"samples": "8", "length": "32"}
    given = [part for name, value in asked.items() for part in (f"--calibration-{name}", value)]
    return ["--algorithm", "gptq", "--group-size", "32", "--calibration", str(texts), *given]


@pytest.mark.slow
def test_gptq_that_is_killed_in_a_random_block_goes_on_to_the_same_bytes(
    model: Path, options: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("neural_compressor", reason="GPTQ needs neural-compressor-pt")
    whole, parts = tmp_path / "whole/model", tmp_path / "parts/model"
    whole.parent.mkdir()
    parts.parent.mkdir()
    done = run(model, whole, options)
    assert done.blocks > 0 and done.peak >= done.own > 0
    block = killed_in_a_block(model, parts, options, done.block_seconds)
    assert not parts.exists() and len(finished_blocks(parts.parent)) >= block
    run(model, parts, options)
    assert differing(whole, parts) == []
    assert {path.name for path in whole.iterdir()} == {path.name for path in parts.iterdir()}
    assert [path.name for path in parts.parent.iterdir()] == ["model"]


def killed_in_a_block(model: Path, out: Path, options: list[str], seconds: float) -> int:
    """The number of a block. On a busy machine a little model can be done before the kill comes:
    then it is tried again."""
    for _ in range(5):
        block = random.randrange(LAYERS // 2)
        if run(model, out, options, (block, random.uniform(0, seconds))).killed:
            return block
        shutil.rmtree(out)
    raise AssertionError("all was done before each of five kills")


def test_files_that_differ_are_named(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "same").write_bytes(b"1")
        (folder / "other").write_bytes(folder.name.encode())
    (second / "more").write_bytes(b"")
    assert differing(first, second) == ["more", "other"]


def test_a_command_that_fails_is_told_with_its_error(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"was not quantized:(.|\n)*77"):
        run(model, tmp_path / "out/model", ["--group-size", "77"])
