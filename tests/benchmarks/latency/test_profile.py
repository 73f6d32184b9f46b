"""A profile accounts for the bytes and the time of a step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.cli.app import app
from benchmarks.latency.profile import bytes_of_parts, profile_decoding
from benchmarks.models.shapes import SHAPES
from neuralchat_lite.checkpoints.random_weights import RandomCheckpoint
from neuralchat_lite.kernels import native
from neuralchat_lite.models.build import load_decoder
from neuralchat_lite.models.decoder import Decoder
from neuralchat_lite.packed.format import open_packed
from neuralchat_lite.packed.quantize import quantize_checkpoint
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("profile") / "model"
    quantize_checkpoint(RandomCheckpoint(SHAPES["10m"]), WeightOnlyQuantConfig(), target)
    return target


@pytest.fixture
def decoder(folder: Path) -> Decoder:
    return load_decoder(open_packed(folder))


def test_the_bytes_of_all_parts_are_those_of_a_token(decoder: Decoder) -> None:
    row = decoder.plan.embedding.shape[1] * decoder.plan.embedding.element_size()
    assert sum(bytes_of_parts(decoder, 100).values()) == decoder.bytes_per_token(100) + row


def test_the_parts_make_up_the_step_and_idle_kernels_are_taken_back(decoder: Decoder) -> None:
    want = decoder.forward([5], decoder.new_cache())
    isa = native.isa().value
    found = profile_decoding(decoder, context=32, tokens=8, rounds=3)
    assert [one.name for one in found.operations] == list(native.PARTS)
    assert all(one.seconds > 0 for one in found.operations)
    assert found.around < found.seconds
    assert native.isa().value == isa
    assert decoder.forward([5], decoder.new_cache()).equal(want)


def test_the_command_shows_and_writes_it(folder: Path, tmp_path: Path) -> None:
    asked = ["profile", "--folder", str(folder), "--rounds", "1", "--tokens", "2"]
    asked += ["--compute-dtype", "auto"]
    run = CliRunner().invoke(app, [*asked, "-o", str(tmp_path / "p.json")])
    assert run.exit_code == 0, run.output
    assert "gate_up" in run.output and "hand-over" in run.output
    written = json.loads((tmp_path / "p.json").read_text("utf-8"))
    assert {one["name"] for one in written["operations"]} == set(native.PARTS)
