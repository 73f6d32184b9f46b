"""Written GGUF files are read back by the `gguf` package, and here with the same codes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import neuralchat_lite as ncl
from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.checkpoints.gguf.source import GGUFSource, open_gguf
from neuralchat_lite.errors import CacheError, ConfigError, UnsupportedModelError
from neuralchat_lite.kernels.layout import PackedMatrix, dequantize
from neuralchat_lite.packed.format import open_packed

gguf = pytest.importorskip("gguf", reason="needs the gguf package: pip install gguf")

NANO = Path(__file__).parents[2] / "examples/nano/model"
QUESTION = [{"role": "user", "content": "calculate 100 + 520 + 60"}]


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEURALCHAT_LITE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    "options",
    [
        {"weight_dtype": "int8"},
        {"weight_dtype": "int4_clip"},
        {"weight_dtype": "int4", "scheme": "sym", "group_size": 128},
        {"weight_dtype": "int4", "scheme": "affine", "lm_head": "int4"},
    ],
    ids=str,
)
def test_the_codes_of_a_quantized_folder_are_written_as_they_are(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    folder = ncl.quantize(NANO, options, tmp_path / "quantized")
    path = ncl.export(folder, tmp_path / "nano.gguf")
    packed, source = open_packed(folder), open_gguf(path)
    for spec in packed.architecture.tensors():
        mine = packed.weight(spec.name)
        if isinstance(mine, PackedMatrix):
            found = source.packed(spec.name)
            assert found is not None
            assert torch.equal(dequantize(found), dequantize(mine)), spec.name
        else:
            assert torch.equal(source.weight(spec.name).float(), mine.float()), spec.name
    ours, theirs = (ncl.load(each).generate(QUESTION, max_new_tokens=8) for each in (path, folder))
    assert ours.token_ids == theirs.token_ids


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q4_1"])
def test_a_checkpoint_is_quantized_by_the_package(tmp_path: Path, kind: str) -> None:
    source = open_gguf(ncl.export(NANO, tmp_path / "nano.gguf", kind))
    wanted = open_checkpoint(NANO).weight("model.layers.1.mlp.down_proj.weight").float().numpy()
    number = gguf.GGMLQuantizationType[kind.upper()]
    meant = gguf.quants.dequantize(gguf.quants.quantize(wanted, number), number)
    found = source.packed("model.layers.1.mlp.down_proj.weight")
    assert found is not None
    assert np.array_equal(dequantize(found).numpy(), meant)


def test_the_package_reads_what_was_written(tmp_path: Path) -> None:
    path = ncl.export(NANO, tmp_path / "nano.gguf", "q8_0")
    reader = gguf.GGUFReader(path)
    source = open_gguf(path)
    assert {tensor.name for tensor in reader.tensors} == set(source.file.tensors)
    assert {
        name: field.contents() for name, field in reader.fields.items() if "GGUF." not in name
    } == source.file.metadata


def test_an_answer_is_that_of_the_checkpoint_in_int8(tmp_path: Path) -> None:
    path = ncl.export(NANO, tmp_path / "nano.gguf")
    model = ncl.load(path, compute_dtype="fp32")
    assert "100 + 520 = 620" in model.generate(QUESTION, max_new_tokens=40).text
    assert model.report()["import_losses"] == {}
    tokenizer = ncl.load(NANO, "int8").tokenizer
    for text in ("calculate 100 + 520", "A  b\n\nc", "é"):
        assert model.tokenizer.encode(text) == tokenizer.encode(text)


def test_codes_that_gguf_does_not_have_are_refused(tmp_path: Path) -> None:
    folder = ncl.quantize(NANO, {"weight_dtype": "int8", "scheme": "asym"}, tmp_path / "quantized")
    with pytest.raises(ConfigError, match=r"int8, asym, in groups of 32 .* no type of GGUF holds"):
        ncl.export(folder, tmp_path / "nano.gguf")
    assert not (tmp_path / "nano.gguf").exists()


def test_what_cannot_be_asked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be one of q8_0, q4_0, q4_1, .*, got 'q5_k'"):
        ncl.export(NANO, tmp_path / "nano.gguf", "q5_k")
    path = ncl.export(NANO, tmp_path / "nano.gguf")
    with pytest.raises(CacheError, match="exists already"):
        ncl.export(NANO, path)
    with pytest.raises(ConfigError, match="has codes, which are written as they are"):
        ncl.export(path, tmp_path / "other.gguf", "q4_0")
    assert sorted(each.name for each in tmp_path.glob("*.gguf")) == ["nano.gguf"]
    assert not list(tmp_path.glob(".*part"))


def test_a_file_of_a_file_is_the_same(tmp_path: Path) -> None:
    first = ncl.export(NANO, tmp_path / "first.gguf", "q4_1")
    second = open_gguf(ncl.export(first, tmp_path / "second.gguf"))
    source: GGUFSource = open_gguf(first)
    for name, tensor in source.file.tensors.items():
        other = second.file.tensors[name]
        assert np.array_equal(second.file.raw(other), source.file.raw(tensor))


def test_a_tokenizer_without_words_in_gguf_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(NANO, folder)
    data = (folder / "tokenizer.json").read_text()
    changed = data.replace('"String": " "', '"Regex": " {2,}"')
    assert changed != data
    (folder / "tokenizer.json").write_text(changed)
    with pytest.raises(UnsupportedModelError, match="no tokenizer of llama"):
        ncl.export(folder, tmp_path / "nano.gguf")
