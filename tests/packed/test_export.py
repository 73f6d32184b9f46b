"""Folders of codes for other programs: read back bit for bit, here and by their own readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import neuralchat_lite as ncl
from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.checkpoints.stored_codes import unpacked
from neuralchat_lite.errors import CacheError, ConfigError
from neuralchat_lite.kernels.layout import PackedMatrix, dequantize
from neuralchat_lite.packed.codes_folder import packed_words
from neuralchat_lite.packed.export import EXPORTS, export_model
from neuralchat_lite.packed.format import open_packed
from neuralchat_lite.packed.quantize import quantize_checkpoint
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig

from ..made_gguf import write_gguf

NANO = Path(__file__).parents[2] / "examples/nano/model"
IDS = torch.tensor([5, 80, 33, 7, 100, 3])
FOLDERS = [kind for kind, where in EXPORTS.items() if "gguf" not in where]
SETTINGS: dict[str, dict[str, Any]] = {
    "int4 sym": {"weight_dtype": "int4", "scheme": "sym"},
    "int4 asym, rows": {"weight_dtype": "int4_clip", "scheme": "asym", "group_size": -1},
    "int4 asym": {"weight_dtype": "int4", "scheme": "asym", "group_size": 64},
    "int8 sym": {"weight_dtype": "int8", "group_size": 64, "scale_dtype": "bf16"},
    "int8 asym": {"weight_dtype": "int8", "scheme": "asym", "scale_dtype": "fp32"},
}
KEPT = "model.layers.0.mlp.up_proj"


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEURALCHAT_LITE_CACHE", str(tmp_path / "cache"))


def quantized(tmp_path: Path, **options: Any) -> Path:
    options = {"modules_to_not_convert": ["lm_head"], **options}  # its rows are no whole words
    return ncl.quantize(NANO, options, tmp_path / "quantized")


def logits(model: ncl.Model) -> Tensor:
    return model.decoder.forward(IDS, model.decoder.new_cache(), all_logits=True)


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("name", SETTINGS)
def test_codes_scales_and_zeros_come_back_bit_for_bit(tmp_path: Path, kind: str, name: str) -> None:
    folder = quantized(tmp_path, **SETTINGS[name], modules_to_not_convert=["lm_head", KEPT])
    out = ncl.export(folder, tmp_path / "out", kind)
    packed, source = open_packed(folder), open_checkpoint(out)
    coded = 0
    for spec in packed.architecture.tensors():
        mine, found = packed.weight(spec.name), source.packed(spec.name)
        if not isinstance(mine, PackedMatrix):
            assert found is None and torch.equal(source.weight(spec.name), mine), spec.name
            continue
        assert found is not None
        coded += 1
        for part in ("codes", "scales", "zeros"):
            want, got = getattr(mine, part), getattr(found, part)
            assert (want is None) == (got is None)
            assert want is None or torch.equal(want, got), (spec.name, part)
        assert found.group_size == mine.group_size
    assert coded > 10


def weights_of(module: str, folder: Path) -> dict[str, Tensor]:
    """The tensors of a module, by the ends of their names."""
    found = load_file(folder / "model.safetensors")
    start = f"{module}."
    return {name[len(start) :]: value for name, value in found.items() if name.startswith(start)}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_package_compressed_tensors_computes_the_same_weights(
    tmp_path: Path, name: str
) -> None:
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors")
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationConfig

    folder = quantized(tmp_path, **SETTINGS[name])
    out = ncl.export(folder, tmp_path / "out", "compressed-tensors")
    said = json.loads((out / "config.json").read_text())["quantization_config"]
    scheme = QuantizationConfig.model_validate(said).config_groups["group_0"]
    packed = open_packed(folder)
    for module in ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"):
        tensors = weights_of(module, out)
        tensors["weight_scale"] = tensors["weight_scale"].float()
        found = PackedQuantizationCompressor.decompress(tensors, scheme)["weight"]
        assert torch.equal(found, dequantize(packed.weight(f"{module}.weight")))


@pytest.mark.slow
def test_transformers_reads_compressed_tensors_and_answers_the_same(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors")
    from transformers import AutoModelForCausalLM

    # compressed-tensors 0.20 plans zero points unpacked in transformers, and refuses them.
    folder = quantized(tmp_path, weight_dtype="int4", scheme="sym")
    out = ncl.export(folder, tmp_path / "out", "compressed-tensors")
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        found = model(IDS[None]).logits[0].float()
    wanted = logits(ncl.load(folder, compute_dtype="fp32"))
    assert (found - wanted).norm() / wanted.norm() < 2e-3  # it rounds weights to the scales' type


@pytest.mark.parametrize("name", [name for name in SETTINGS if "int4" in name])
def test_gptq_means_what_auto_round_reads(tmp_path: Path, name: str) -> None:
    """AutoRound's own layer for GPTQ, which unpacks and multiplies in PyTorch."""
    layers = pytest.importorskip("auto_round_extension.torch.qlinear_torch", reason="auto-round")
    other = pytest.importorskip("auto_round_extension.torch.qlinear_torch_zp", reason="auto-round")
    folder = quantized(tmp_path, **SETTINGS[name])
    out = ncl.export(folder, tmp_path / "out", "gptq")
    said = json.loads((out / "config.json").read_text())["quantization_config"]
    kind = other if said["checkpoint_format"] == "gptq" else layers  # v1 stores zeros less one
    module = "model.layers.1.mlp.down_proj"
    tensors, wanted = weights_of(module, out), open_packed(folder).weight(f"{module}.weight")
    rows, cols = wanted.rows, wanted.cols
    layer = kind.QuantLinear(4, said["group_size"], cols, rows, bias=False)
    layer.qweight, layer.qzeros, layer.scales = (
        tensors[part] for part in ("qweight", "qzeros", "scales")
    )
    layer.post_init()
    found = layer(torch.eye(cols, dtype=torch.float32)).t()
    assert (found - dequantize(wanted)).norm() / dequantize(wanted).norm() < 1e-3


@pytest.mark.parametrize("bits", [4, 8])
def test_words_hold_the_first_level_in_their_lowest_bits(bits: int) -> None:
    levels = torch.randint(0, 1 << bits, (3, 16), dtype=torch.uint8)
    words, count = packed_words(levels, bits), 32 // bits
    for row, word in ((row, word) for row in range(3) for word in range(16 // count)):
        values = levels[row, word * count : (word + 1) * count].tolist()
        total = sum(value << (bits * index) for index, value in enumerate(values))
        assert int(words[row, word]) % (1 << 32) == total
    assert torch.equal(unpacked(words, bits), levels)


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"weight_dtype": "int4"}, "int4, affine8.* with a minimum .* with scheme='sym' or"),
        ({"weight_dtype": "int8", "scheme": "affine"}, "int8, affine, .* or export a GGUF file"),
        (
            {"weight_dtype": "int4", "scheme": "sym", "modules_to_not_convert": []},
            r"lm_head is int8, .* one setting .*lm_head='int4' or.*modules_to_not_convert",
        ),
        (
            {"weight_dtype": "int4", "scheme": "sym", "overrides": {"*.up_proj": "int8"}},
            "up_proj is int8, .* one setting .* without overrides",
        ),
    ],
    ids=str,
)
def test_codes_without_a_place_in_a_format_are_refused_with_what_to_do(
    tmp_path: Path, kind: str, options: dict[str, Any], why: str
) -> None:
    folder = quantized(tmp_path, **options)
    with pytest.raises(ConfigError, match=why):
        ncl.export(folder, tmp_path / "out", kind)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_checkpoint_without_codes_is_to_be_quantized_first(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ConfigError, match="written from codes, and this model has none: quantize"):
        ncl.export(NANO, tmp_path / "out", kind)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(CacheError, match="full"):
        ncl.export(quantized(tmp_path, weight_dtype="int8"), tmp_path / "full", kind)


def test_a_folder_of_one_format_becomes_one_of_the_other(tmp_path: Path) -> None:
    folder = quantized(tmp_path, weight_dtype="int4", scheme="asym")
    first = ncl.export(folder, tmp_path / "gptq", "gptq")
    second = ncl.export(first, tmp_path / "compressed", "compressed-tensors")
    third = ncl.export(second, tmp_path / "again", "gptq")
    assert (first / "model.safetensors").read_bytes() == (third / "model.safetensors").read_bytes()
    assert (first / "config.json").read_text() == (third / "config.json").read_text()


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_gguf_file_becomes_a_folder(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("gguf", reason="needs the gguf package: pip install gguf")
    weights = write_gguf(tmp_path / "model.gguf", lambda name: "Q4_0")
    found = open_checkpoint(ncl.export(tmp_path / "model.gguf", tmp_path / "out", kind))
    assert found.packed("lm_head.weight") is not None
    for name, wanted in weights.items():
        assert torch.equal(found.weight(name).float(), wanted), name
    write_gguf(tmp_path / "other.gguf", lambda name: "Q4_1")
    with pytest.raises(ConfigError, match=r"int4, affine, .* or export a GGUF file"):
        ncl.export(tmp_path / "other.gguf", tmp_path / "more", kind)


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("table", [None, "int8"])
def test_a_head_has_codes_and_an_embedding_floats(
    tmp_path: Path, kind: str, tied: bool, table: str | None, write_checkpoint: Any
) -> None:
    checkpoint = open_checkpoint(
        write_checkpoint(tie_word_embeddings=tied, vocab_size=96, intermediate_size=192)
    )
    overrides = {"model.embed_tokens": table} if table else None
    config = WeightOnlyQuantConfig("int8", overrides=overrides)
    packed = open_packed(quantize_checkpoint(checkpoint, config, tmp_path / "quantized"))
    files: Any = checkpoint.sidecars()
    out = export_model(packed, None, files, tmp_path / "out", kind)  # type: ignore[arg-type]
    found = open_checkpoint(out)
    embedding = packed.weight("model.embed_tokens.weight")
    wanted = dequantize(embedding) if isinstance(embedding, PackedMatrix) else embedding
    assert torch.equal(found.weight("model.embed_tokens.weight"), wanted)
    head = found.packed("lm_head.weight")
    assert (head is None) == tied
    if head is not None:
        assert torch.equal(head.codes, packed.weight("lm_head.weight").codes)
    said = json.loads((out / "config.json").read_text())["quantization_config"]
    assert said.get("lm_head", "lm_head" not in said.get("ignore", ())) == (not tied)


def test_gptq_refuses_rows_that_are_no_whole_words(tmp_path: Path) -> None:
    folder = quantized(tmp_path, weight_dtype="int8", modules_to_not_convert=[])
    rows = open_packed(folder).architecture.vocab_size
    with pytest.raises(ConfigError, match=f"lm_head is {rows} x .* type='compressed-tensors', or"):
        ncl.export(folder, tmp_path / "out", "gptq")
    out = ncl.export(folder, tmp_path / "out", "compressed-tensors")
    found, mine = (
        open_checkpoint(out).packed("lm_head.weight"),
        open_packed(folder).weight("lm_head.weight"),
    )
    assert found is not None and isinstance(mine, PackedMatrix)
    assert torch.equal(found.codes, mine.codes)
