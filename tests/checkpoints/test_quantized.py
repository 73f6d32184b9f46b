"""Checkpoints that others quantized: codes, scales and zeros go into our layout bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import neuralchat_lite as ncl
from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.checkpoints.stored_codes import unpacked
from neuralchat_lite.errors import CheckpointError, ConfigError, UnsupportedModelError
from neuralchat_lite.kernels.layout import PackedMatrix, dequantize
from neuralchat_lite.packed.format import open_packed

NANO = Path(__file__).parents[2] / "examples/nano/model"
NAME = "model.layers.1.mlp.down_proj.weight"
Tensors = dict[str, Tensor]


# ---- writers, slow and obvious ----


def words(values: Tensor, bits: int, dim: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Levels packed into int32 along a dimension: value order[i] of each word in its bits i."""
    count = 32 // bits
    parts = values.long().transpose(dim, -1).unflatten(-1, (-1, count))
    total = sum(
        parts[..., place] << (bits * index)
        for index, place in enumerate(order or tuple(range(count)))
    )
    assert isinstance(total, Tensor)
    signed = torch.where(total >= 1 << 31, total - (1 << 32), total)
    return signed.to(torch.int32).transpose(dim, -1).contiguous()


def gptq(levels: Tensor, scales: Tensor, zeros: Tensor, bits: int, minus: int) -> Tensors:
    return {
        "qweight": words(levels.t(), bits, 0),
        "qzeros": words(zeros.t() - minus, bits, 1),
        "scales": scales.t().contiguous(),
        "g_idx": (torch.arange(levels.shape[1]) // (levels.shape[1] // scales.shape[1])).int(),
    }


def awq(levels: Tensor, scales: Tensor, zeros: Tensor, bits: int, minus: int) -> Tensors:
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        "qweight": words(levels.t(), bits, 1, order),
        "qzeros": words(zeros.t(), bits, 1, order),
        "scales": scales.t().contiguous(),
    }


def compressed(levels: Tensor, scales: Tensor, zeros: Tensor, bits: int, minus: int) -> Tensors:
    found = {
        "weight_packed": words(levels, bits, 1),
        "weight_scale": scales,
        "weight_shape": torch.tensor(levels.shape),
    }
    middle = 1 << (bits - 1)
    return (
        found
        if bool((zeros == middle).all())
        else found | {"weight_zero_point": words(zeros, bits, 0)}
    )


Made = tuple[Path, dict[str, Tensor]]  # the folder, and the reference weight of each matrix


def make(
    folder: Path,
    write: Callable[..., Tensors],
    said: dict[str, Any],
    *,
    bits: int = 4,
    group_size: int = 32,
    symmetric: bool = False,
    minus: int = 0,
    dtype: torch.dtype = torch.float16,
    keep: tuple[str, ...] = (),
) -> Made:
    """nano with made-up codes near its weights, in somebody's format."""
    folder.mkdir()
    for file in NANO.iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copy(file, folder)
    config = json.loads((NANO / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    tensors, reference = load_file(NANO / "model.safetensors"), {}
    generator = torch.Generator().manual_seed(3)
    highest, middle = (1 << bits) - 1, 1 << (bits - 1)
    for name in list(tensors):
        if "_proj.weight" not in name or any(part in name for part in keep):
            continue
        weight = tensors.pop(name).float()
        rows, cols = weight.shape
        size = cols if group_size == -1 else group_size
        grouped = weight.view(rows, -1, size)
        scales = (grouped.abs().amax(-1) / (middle - 1)).to(dtype)
        zeros = torch.full(scales.shape, middle)
        if not symmetric:
            zeros += torch.randint(-2, 3, scales.shape, generator=generator)
            zeros[0, 0] = 1 if minus else 0  # v1 has no zero point 0: it stores them less one
        levels = (grouped / scales.float()[..., None]).round() + zeros[..., None]
        levels = levels.clamp(0, highest).view(rows, cols).to(torch.int32)
        spread = [values.repeat_interleave(size, 1) for values in (scales.float(), zeros)]
        reference[name] = spread[0] * (levels - spread[1])
        stem = name.removesuffix("weight")
        parts = write(levels, scales, zeros, bits, minus)
        tensors |= {f"{stem}{part}": tensor for part, tensor in parts.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, reference


def weights_of(**said: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"type": "int", **said}}},
        "ignore": ["lm_head"],
    }


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 32}
CASES: dict[str, tuple[Callable[..., Tensors], dict[str, Any], dict[str, Any]]] = {
    "gptq v1": (gptq, {**GPTQ, "sym": False}, {"minus": 1}),
    "gptq v1 sym": (gptq, {**GPTQ, "sym": True}, {"minus": 1, "symmetric": True}),
    "gptq v2": (gptq, {**GPTQ, "sym": False, "checkpoint_format": "gptq_v2"}, {}),
    "gptq int8": (
        gptq,
        {**GPTQ, "bits": 8, "group_size": 128, "sym": True},
        {"bits": 8, "group_size": 128, "minus": 1, "symmetric": True},
    ),
    "gptq int8 asym rows": (
        gptq,
        {**GPTQ, "bits": 8, "group_size": -1, "sym": False},
        {"bits": 8, "group_size": -1, "minus": 1},
    ),
    "awq": (
        awq,
        {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"},
        {"group_size": 64},
    ),
    "auto-round gptq": (
        gptq,
        {**ROUND, "sym": False, "packing_format": "auto_round:auto_gptq"},
        {"minus": 1},
    ),
    "auto-round": (gptq, {**ROUND, "sym": False, "packing_format": "auto_round"}, {}),
    "auto-round awq": (
        awq,
        {**ROUND, "sym": False, "packing_format": "auto_round:auto_awq"},
        {},
    ),
    "compressed group": (
        compressed,
        weights_of(num_bits=4, strategy="group", group_size=128, symmetric=True),
        {"group_size": 128, "symmetric": True, "dtype": torch.bfloat16},
    ),
    "compressed asym": (
        compressed,
        weights_of(num_bits=4, strategy="group", group_size=32, symmetric=False),
        {"dtype": torch.float32},
    ),
    "compressed channel": (
        compressed,
        weights_of(num_bits=8, strategy="channel", symmetric=True),
        {"bits": 8, "group_size": -1, "symmetric": True},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_codes_are_taken_over_bit_for_bit(case: str, tmp_path: Path) -> None:
    write, said, options = CASES[case]
    folder, reference = make(tmp_path / "theirs", write, said, **options)
    source = open_checkpoint(folder)
    ours = open_packed(ncl.quantize(folder, output=tmp_path / "ours"))
    assert len(reference) == 28
    for name, want in reference.items():
        assert torch.equal(source.weight(name), want)
        stored = ours.weight(name)
        assert isinstance(stored, PackedMatrix)
        assert torch.equal(dequantize(stored), want)
        assert stored.scales.dtype == options.get("dtype", torch.float16)
        assert (stored.zeros is None) == options.get("symmetric", False)
    config = json.loads((tmp_path / "ours/config.json").read_text())
    assert "quantization_config" not in config, "it would speak of codes that are not there"


def test_a_quantized_checkpoint_answers_with_and_without_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEURALCHAT_LITE_CACHE", str(tmp_path / "cache"))
    write, said, options = CASES["gptq v1"]
    folder, _ = make(tmp_path / "theirs", write, said, **options)
    question = [{"role": "user", "content": "calculate 1 + 2"}]
    for given in ({}, {"dtype": "fp32"}, {"quantization_config": {"compute_dtype": "int8"}}):
        model = ncl.load(folder, **given)
        assert "Answer: 3" in model.generate(question, max_new_tokens=60).text
    with pytest.raises(ConfigError, match=r"group_size=64 \(stored: 32\)"):
        ncl.load(folder, {"group_size": 64})
    texts = {"texts": ["calculate 1 + 2. " * 20], "length": 8}
    with pytest.raises(ConfigError, match=r"algorithm='GPTQ' \(stored: 'RTN'\)"):
        ncl.load(folder, {"algorithm": "GPTQ"}, calibration=texts)


@pytest.mark.parametrize(
    ("asked", "dtypes"),
    [
        ({"lm_head": "int4"}, ("int4", None)),
        ({"overrides": {"lm_head": {"weight_dtype": "int4", "group_size": 64}}}, ("int4", None)),
        ({"overrides": {"model.embed_tokens": "int8"}}, ("int8", "int8")),
    ],
    ids=str,
)
def test_the_head_and_the_embedding_beside_codes_have_settings_of_their_own(
    asked: dict[str, Any], dtypes: tuple[str, str | None], tmp_path: Path
) -> None:
    write, said, options = CASES["gptq v1"]
    folder, reference = make(tmp_path / "theirs", write, said, **options)
    ours = open_packed(ncl.quantize(folder, asked, tmp_path / "ours"))
    for name, want in reference.items():
        stored = ours.weight(name)
        assert isinstance(stored, PackedMatrix) and torch.equal(dequantize(stored), want)
    found = [ours.weight(name) for name in ("lm_head.weight", "model.embed_tokens.weight")]
    assert tuple(getattr(each, "weight_dtype", None) for each in found) == dtypes


def test_other_settings_for_stored_codes_are_refused(tmp_path: Path) -> None:
    write, said, options = CASES["gptq v1"]
    folder, _ = make(tmp_path / "theirs", write, said, **options)
    for overrides in ({"model.layers.0.*": "int8"}, {"lm_head": "int4", "*.q_proj": "int8"}):
        with pytest.raises(ConfigError, match=r"overrides=.* \(stored: .*leave these options out"):
            ncl.quantize(folder, {"overrides": overrides}, tmp_path / "ours")


def test_layers_that_were_left_out_stay_as_they_are(tmp_path: Path) -> None:
    write, said, options = CASES["awq"]
    keep = ("layers.0.self_attn",)
    folder, reference = make(tmp_path / "theirs", write, said, **options, keep=keep)
    ours = open_packed(ncl.quantize(folder, output=tmp_path / "ours"))
    kept = ours.weight("model.layers.0.self_attn.q_proj.weight")
    assert isinstance(kept, Tensor)
    assert kept.dtype == torch.bfloat16
    assert isinstance(ours.weight("model.layers.0.mlp.up_proj.weight"), PackedMatrix)
    assert len(reference) == 24


def test_act_order_is_read_but_not_taken_over(tmp_path: Path) -> None:
    write, said, options = CASES["gptq v2"]
    folder, reference = make(tmp_path / "theirs", write, {**said, "desc_act": True}, **options)
    tensors = load_file(folder / "model.safetensors")
    order = torch.randperm(640, generator=torch.Generator().manual_seed(5))
    stem = NAME.removesuffix("weight")
    # The codes of column order[i] are those of column i: the groups go with them.
    back = order.argsort()
    tensors[f"{stem}g_idx"] = tensors[f"{stem}g_idx"][back].contiguous()
    levels = unpacked(tensors[f"{stem}qweight"].t(), 4)[:, back]
    tensors[f"{stem}qweight"] = words(levels.t(), 4, 0)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(open_checkpoint(folder).weight(NAME), reference[NAME][:, back])
    with pytest.raises(ConfigError, match=r"in another order .*ask for weight_dtype='int8'"):
        ncl.quantize(folder, output=tmp_path / "ours")
    again = open_packed(ncl.quantize(folder, "int8", tmp_path / "again"))
    stored = again.weight(NAME)
    assert isinstance(stored, PackedMatrix)
    assert (dequantize(stored) - reference[NAME][:, back]).abs().max() < 0.01


REFUSED = [
    ({**GPTQ, "bits": 3}, "GPTQ with bits 3 is not supported, 4 and 8 are read"),
    ({**GPTQ, "group_size": 16}, "GPTQ with group_size 16"),
    ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
    ({**GPTQ, "dynamic": {"+:.*down.*": {"bits": 8}}}, "settings of its own"),
    ({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv"}, "version 'gemv'"),
    ({**ROUND, "packing_format": "auto_round:exllamav2"}, "packing_format 'auto_round:exllamav2'"),
    ({**ROUND, "act_bits": 8}, "quantized activations"),
    ({**weights_of(num_bits=4), "format": "int-quantized"}, "format 'int-quantized'"),
    (weights_of(num_bits=4, strategy="tensor"), "strategy 'tensor'"),
    (weights_of(num_bits=4, strategy="group", group_size=32, type="float"), "with weights"),
    ({"quant_method": "bitsandbytes"}, "already quantized"),
]


@pytest.mark.parametrize(("said", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_not_read_is_refused_by_name(
    said: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder, _ = make(tmp_path / "theirs", gptq, said)
    with pytest.raises(UnsupportedModelError, match=message):
        open_checkpoint(folder)


def test_damaged_codes_are_told(tmp_path: Path) -> None:
    write, said, options = CASES["gptq v1"]
    folder, _ = make(tmp_path / "theirs", write, {**said, "sym": True}, **options)
    with pytest.raises(CheckpointError, match=r"has zero points, but config.json says that codes"):
        ncl.quantize(folder, output=tmp_path / "ours")
    tensors = load_file(folder / "model.safetensors")
    stem = NAME.removesuffix("weight")
    tensors[f"{stem}scales"] = tensors[f"{stem}scales"][:-1].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"has codes \[256, 640\] and scales \[256, 19\]"):
        open_checkpoint(folder).packed(NAME)
    del tensors[f"{stem}scales"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"down_proj.scales is missing, which GPTQ stores"):
        open_checkpoint(folder)


def test_the_packing_is_that_of_compressed_tensors() -> None:
    theirs = pytest.importorskip(
        "compressed_tensors.compressors.pack_quantized.helpers",
        reason="compressed-tensors is not installed: pip install '.[test]'",
    )
    levels = torch.randint(-8, 8, (16, 64), generator=torch.Generator().manual_seed(2))
    packed = theirs.pack_to_int32(levels.to(torch.int8), 4)
    assert torch.equal(unpacked(packed, 4).int() - 8, levels.int())


def test_the_packing_is_that_of_auto_round(tmp_path: Path) -> None:
    theirs = pytest.importorskip(
        "auto_round_extension.torch.qlinear_torch_zp",
        reason="auto-round is not installed: pip install '.[calibration]'",
    )
    linear = torch.nn.Linear(640, 256, bias=False)
    scales = torch.full((256, 20), 0.01)
    zeros = torch.randint(1, 16, (256, 20), generator=torch.Generator().manual_seed(2))
    made = theirs.QuantLinear(4, 32, 640, 256, False)
    made.pack(linear, scales, zeros.float(), device="cpu")
    with torch.no_grad():
        want = made.float()(torch.eye(640)).t()
    write, said, options = CASES["auto-round gptq"]
    folder, _ = make(tmp_path / "theirs", write, said, **options)
    tensors = load_file(folder / "model.safetensors")
    stem = NAME.removesuffix("weight")
    for part in ("qweight", "qzeros"):
        tensors[f"{stem}{part}"] = getattr(made, part)
    tensors[f"{stem}scales"] = made.scales.half()
    del tensors[f"{stem}g_idx"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    torch.testing.assert_close(open_checkpoint(folder).weight(NAME), want, rtol=1e-6, atol=1e-7)


def test_adapters_are_not_merged_into_codes(
    tmp_path: Path, make_adapter: Callable[..., Path]
) -> None:
    write, said, options = CASES["awq"]
    folder, _ = make(tmp_path / "theirs", write, said, **options)
    adapter = make_adapter(NANO, "sft", 0)
    with pytest.raises(ConfigError, match="is already quantized: give the original checkpoint"):
        ncl.quantize(folder, output=tmp_path / "ours", adapters=[adapter])
