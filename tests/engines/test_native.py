"""The native engine: the precision of its activations, and what it says of bad logits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import neuralchat_lite
from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.engines.native import open_native
from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.kernels.layout import ROW_TILE, padded
from neuralchat_lite.packed.format import open_packed
from neuralchat_lite.packed.quantize import quantize_checkpoint
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig

NANO = Path(__file__).parents[2] / "examples/nano/model"


@pytest.fixture
def logits(tmp_path: Path) -> Callable[..., torch.Tensor]:
    def logits_of(weights: str, head: str, compute_dtype: str) -> torch.Tensor:
        config = {"weight_dtype": weights, "lm_head": head}
        model = neuralchat_lite.load(NANO, config, compute_dtype=compute_dtype, cache_dir=tmp_path)
        return model.decoder.forward(list(range(5, 15)), model.decoder.new_cache())

    return logits_of


def test_auto_computes_each_matrix_as_its_weights_ask_for(logits):
    assert torch.equal(logits("int8", "int8", "auto"), logits("int8", "int8", "bf16"))
    assert torch.equal(logits("int4", "int4", "auto"), logits("int4", "int4", "int8"))
    mixed = logits("int4", "int8", "auto")
    assert not torch.equal(mixed, logits("int4", "int8", "int8"))
    assert not torch.equal(mixed, logits("int4", "int8", "bf16"))


def test_the_report_has_what_was_asked_what_was_taken_and_what_runs_it(tmp_path):
    report = neuralchat_lite.load(NANO, "int4", compute_dtype="auto", cache_dir=tmp_path).report()
    assert (report["compute_dtype_asked"], report["compute_dtype"]) == ("auto", "int8")
    assert set(report["products"]) == {"int4 x int8", "int8 x bf16"}
    for product in report["products"].values():
        assert product["instruction"] and product["why"]
        assert (product["set"] == report["isa"]) == (product["why"] == "the set in use")
    report = neuralchat_lite.load(NANO, dtype="bf16").report()
    assert (report["compute_dtype_asked"], report["compute_dtype"]) == ("bf16", "bf16")
    assert set(report["products"]) == {"unquantized x fp32"}


def test_overrides_decide_matrix_by_matrix_what_runs(tmp_path):
    config = {
        "weight_dtype": "int4_clip",
        "compute_dtype": "auto",
        "overrides": {
            "*.k_proj": "int8",
            "*.down_proj": {"scheme": "affine"},
            "lm_head": "int4_clip",
        },
    }
    model = neuralchat_lite.load(NANO, config, cache_dir=tmp_path)
    # Queries and values share their input with the keys, so they take their precision.
    assert set(model.report()["products"]) == {"int4 x bf16", "int8 x bf16", "int4 x int8"}
    assert model.report()["weights"]["overrides"]["lm_head"] == {"weight_dtype": "int4_clip"}
    plain = neuralchat_lite.load(NANO, {**config, "overrides": None}, cache_dir=tmp_path)
    arch = model.decoder.architecture
    more = arch.layers * (arch.kv_size * arch.hidden_size // 2)  # 4 bits each
    more += arch.layers * arch.hidden_size * -(-arch.intermediate_size // 32) * 2  # minima
    less = padded(arch.vocab_size, ROW_TILE) * arch.hidden_size // 2
    assert model.decoder.weight_bytes - plain.decoder.weight_bytes == more - less
    assert model.decoder.forward([1, 2, 3], model.decoder.new_cache()).isfinite().all()


def test_a_tied_embedding_in_int8_is_stored_and_counted_once(write_checkpoint, tmp_path):
    checkpoint = open_checkpoint(write_checkpoint(tie_word_embeddings=True))
    logits, sizes = [], []
    for overrides in (None, {"model.embed_tokens": "int8"}):
        config = WeightOnlyQuantConfig("int8", overrides=overrides)
        folder = quantize_checkpoint(checkpoint, config, tmp_path / f"int8-{bool(overrides)}")
        decoder = open_native(open_packed(folder), config, context_length=64).decoder
        logits.append(decoder.forward([1, 2, 3], decoder.new_cache()))
        sizes.append((folder / "model.safetensors").stat().st_size)
        table = checkpoint.weight("model.embed_tokens.weight").nbytes
        assert decoder.table_bytes == (0 if overrides else table)
    assert 0 <= sizes[0] - sizes[1] - table < 256  # of the header
    assert 0 < (logits[0] - logits[1]).abs().max() < 0.1 * logits[0].abs().max()


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
