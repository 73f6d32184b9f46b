"""The bytes of quantized models do not change from release to release: caches rely on it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import neuralchat_lite as ncl
from benchmarks.models.shapes import SHAPES
from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.checkpoints.random_weights import RandomCheckpoint
from neuralchat_lite.checkpoints.source import Source
from neuralchat_lite.packed.quantize import quantize_checkpoint
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig

NANO = Path(__file__).parents[2] / "examples/nano/model"
# Options -> sha256 of model.safetensors, as release 0.1 wrote it; "int4" as the first release
# that searches.
OF_NANO: dict[str, tuple[dict[str, Any], str]] = {
    "int4": ({}, "719452ab071e5ea81dfe0355ff196184d9509013e76ca73f68b3c3ae3a639e5e"),
    "int4_clip": (
        {"weight_dtype": "int4_clip"},
        "c27b0cf41920bf8bc06d617408938e90b1de8f2371d9c450f9ac71565ab00169",
    ),
    "int8": (
        {"weight_dtype": "int8"},
        "fd04cac29a918f5cc801557332158f65dcdd153773bc21e15080a8ec5f9c25ce",
    ),
    "int4_clip asym": (
        {"weight_dtype": "int4_clip", "scheme": "asym"},
        "18f0a6ff0487e634cd658aa12e23c563eb96f603e7eb5745d986f34fc80d141a",
    ),
    "int4_fullrange g128": (
        {"weight_dtype": "int4_fullrange", "group_size": 128},
        "7684b9ee38abf4f1da629aaa01f446e8571d080348dd3af39c92423d53988d51",
    ),
    "int8 asym, a row, fp32": (
        {"weight_dtype": "int8", "group_size": -1, "scale_dtype": "fp32", "scheme": "asym"},
        "6ae873efd464f0799c4c4a14b14905de8a64af96521c575885163e79ab410c76",
    ),
}
# The same as format version 2 has it.
OF_VERSION_2: dict[str, tuple[dict[str, Any], str]] = {
    "int4_clip affine": (
        {"weight_dtype": "int4_clip", "scheme": "affine"},
        "860c65d5b084104c06952f4cf1546d5a625bb6ba2dfc27fa0c18b8423719e79a",
    ),
    "int8 affine, a row, bf16": (
        {"weight_dtype": "int8", "scheme": "affine", "group_size": -1, "scale_dtype": "bf16"},
        "ad832fe560dcb0799fdc3ac007c2ff18f6b8b3c62bef0e798843d33c9457f3dd",
    ),
    "overrides": (
        {
            "weight_dtype": "int4_clip",
            "overrides": {
                "model.embed_tokens": "int8",
                "*.down_proj": {"scheme": "affine", "group_size": 64},
            },
        },
        "4580ba0267532cacd79ff6c3b4ed1c218d6cfa1d0a51f134b528bb7ddb855179",
    ),
}
ENTRY = "model-int4-g32-3473085be362"
# Layers of the 1B shape, weight type -> the same.
OF_1B = {
    (1, "int4_clip"): "0ab892c577120af7e3a0a2c6c9a1515d117b646d92997d0b5d2a02bb1a87bea0",
    (1, "int8"): "6a027b0e07c3b8c010579256e3df14f265ffccfc0443dcf4f4c286c2407fd366",
    (22, "int4_clip"): "53abd24eda55834b533438030ec6d5ea5df3f6df3d2d21ba698e77c23a79096d",
}
KEYS = "model.layers.0.self_attn.k_proj.weight"
KEYS_DIGEST = "6ec24b36c2de0bd438b06ecfc831ec2999d4271fdff41d19b3e6a60cad8e6153"


def digest_of(source: Source, out: Path, **options: Any) -> str:
    folder = quantize_checkpoint(source, WeightOnlyQuantConfig(**options), out)
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", OF_NANO)
def test_the_packed_bytes_of_nano_do_not_change(name: str, tmp_path: Path) -> None:
    options, want = OF_NANO[name]
    assert digest_of(open_checkpoint(NANO), tmp_path / "out", **options) == want


@pytest.mark.parametrize("name", OF_VERSION_2)
def test_the_packed_bytes_of_version_2_stay_what_they_are(name: str, tmp_path: Path) -> None:
    options, want = OF_VERSION_2[name]
    assert digest_of(open_checkpoint(NANO), tmp_path / "out", **options) == want


def test_entries_that_release_0_1_made_are_still_found(tmp_path: Path) -> None:
    folder = ncl.quantize(NANO, "int4_clip", cache_dir=tmp_path)
    assert folder.name == ENTRY
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["quantizer"] == {"name": "rtn", "version": 1}


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "weight_dtype"), OF_1B)
def test_the_packed_bytes_of_the_1b_shape_are_those_of_release_0_1(
    layers: int, weight_dtype: str, tmp_path: Path
) -> None:
    source = RandomCheckpoint(SHAPES["1b"] | {"num_hidden_layers": layers})
    drawn = source.weight(KEYS).view(torch.uint8).numpy().tobytes()
    if hashlib.sha256(drawn).hexdigest() != KEYS_DIGEST:
        pytest.skip("torch draws other random numbers on this CPU")
    want = OF_1B[layers, weight_dtype]
    assert digest_of(source, tmp_path / "out", weight_dtype=weight_dtype) == want
