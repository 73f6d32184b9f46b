"""What the native engine says of logits that are not finite."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import neuralchat_lite
from neuralchat_lite.errors import CheckpointError

NANO = Path(__file__).parents[2] / "examples/nano/model"


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(NANO, tmp_path / "spoilt"))
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_nan_of_a_checkpoint_points_to_the_checkpoint(spoilt, dtype):
    model = neuralchat_lite.load(spoilt, dtype=dtype)
    with pytest.raises(CheckpointError, match=r"logits.*download it again") as refused:
        model.generate("1+1=", max_new_tokens=1)
    assert "cache" not in str(refused.value)
    assert ("dtype='fp32'" in str(refused.value)) == (dtype == "bf16")


def test_nan_of_a_quantized_model_points_to_where_its_files_lie(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURALCHAT_LITE_CACHE", str(tmp_path / "cache"))
    cached = neuralchat_lite.load(NANO, "int8")
    remedy = f"`neuralchat-lite cache verify {cached.folder.name}`"
    assert remedy in cached.decoder.when_not_finite
    cached.save_pretrained(tmp_path / "saved")
    saved = neuralchat_lite.load(tmp_path / "saved")
    assert f"copy {tmp_path / 'saved'} again" in saved.decoder.when_not_finite
    assert "cache" not in saved.decoder.when_not_finite.replace(str(tmp_path), "")
