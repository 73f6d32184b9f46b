"""A new quantizer is a class and a row: a toy one goes from there to the cache and the kernels."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import neuralchat_lite as ncl
from neuralchat_lite.checkpoints.source import Source
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.families.architecture import TensorSpec
from neuralchat_lite.kernels.layout import pack_codes, pack_groups
from neuralchat_lite.packed.format import open_packed
from neuralchat_lite.quantization import QUANTIZERS
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.quantization.levels import LEVELS
from neuralchat_lite.quantization.quantizer import PackedSlab, Quantizer, QuantizerIdentity
from neuralchat_lite.quantization.rtn import quantize_rtn

NANO = Path(__file__).parents[2] / "examples/nano/model"


class Halved(Quantizer):
    """Round to nearest, with every code of a positive weight one lower: a caricature of rounding
    that looks at more than one weight."""

    identity = QuantizerIdentity("halved", 3, {"steps": 5}, calibration="c" * 64)

    def __init__(self, config: WeightOnlyQuantConfig) -> None:
        self.config = config

    def slabs(self, source: Source, spec: TensorSpec) -> Iterator[PackedSlab]:
        weight_dtype = self.config.dtype_of(spec.module)
        assert weight_dtype is not None
        found = quantize_rtn(
            source.weight(spec.name),
            weight_dtype=weight_dtype,
            group_size=self.config.group_size,
            scheme=self.config.scheme,
            scale_dtype=self.config.scale_dtype,
        )
        zero = 8 if weight_dtype.startswith("int4") else 0
        codes = torch.where(found.codes > zero, found.codes - 1, found.codes)
        yield PackedSlab(
            pack_codes(codes, LEVELS[weight_dtype].stored), pack_groups(found.scales), None
        )


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("toy_quantizer")
    module.Halved = Halved  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_quantizer", module)
    monkeypatch.setitem(QUANTIZERS, "TOY", "toy_quantizer:Halved")


@pytest.mark.usefixtures("toy")
def test_a_row_is_all_that_a_quantizer_needs(tmp_path: Path) -> None:
    config = WeightOnlyQuantConfig("int4_clip", algorithm="TOY")
    folder = ncl.quantize(NANO, config, cache_dir=tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["quantizer"] == {
        "name": "halved",
        "version": 3,
        "settings": {"steps": 5},
        "calibration": "c" * 64,
    }
    assert manifest["quantization"]["algorithm"] == "TOY"
    plain = open_packed(ncl.quantize(NANO, "int4_clip", cache_dir=tmp_path))
    ours = open_packed(folder)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(ours.weight(name).codes, plain.weight(name).codes)  # type: ignore[union-attr]
    assert torch.equal(ours.weight(name).scales, plain.weight(name).scales)  # type: ignore[union-attr]
    model = ncl.load(NANO, config, cache_dir=tmp_path)
    assert model.folder == folder
    assert ncl.generate(model, [1, 5, 9], max_new_tokens=3).token_ids


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    "other",
    [
        QuantizerIdentity("halved", 4, {"steps": 5}, "c" * 64),
        QuantizerIdentity("halved", 3, {"steps": 6}, "c" * 64),
        QuantizerIdentity("halved", 3, {"steps": 5}, "d" * 64),
        QuantizerIdentity("halved", 3),
    ],
)
def test_version_settings_and_calibration_are_part_of_the_cache_key(
    other: QuantizerIdentity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = WeightOnlyQuantConfig("int4_clip", algorithm="TOY")
    folder = ncl.quantize(NANO, config, cache_dir=tmp_path)
    monkeypatch.setattr(Halved, "identity", other)
    assert ncl.quantize(NANO, config, cache_dir=tmp_path) != folder


def test_an_algorithm_without_a_row_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"algorithm must be one of .*'RTN'.*, got 'TOY'"):
        WeightOnlyQuantConfig(algorithm="TOY")
