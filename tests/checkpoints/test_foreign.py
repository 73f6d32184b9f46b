"""What people have in their folders is told by name, with its remedy."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import neuralchat_lite
from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.checkpoints.foreign import FOREIGN, refuse_foreign
from neuralchat_lite.checkpoints.hub import ADAPTER, resolve
from neuralchat_lite.errors import CheckpointError, UnsupportedModelError

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\n"
    b"size 4540516344\n"
)


def only(*names: str, config: bool = True) -> Callable[[Path], None]:
    """Files of these names instead of model.safetensors."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        for name in names:
            (folder / name).write_bytes(b"{}")
        if not config:
            (folder / "config.json").unlink()

    return change


def configured(**keys: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | keys))

    return change


FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "gguf": (
        only("m.Q4_K_M.gguf", config=False),
        "only a GGUF file .m.Q4_K_M.gguf.*load ",
    ),
    "gguf beside config.json": (only("m.gguf"), "only a GGUF file"),
    "consolidated": (
        only("consolidated.safetensors", "params.json", config=False),
        "only consolidated.safetensors.*in transformers' layout",
    ),
    "consolidated shards": (
        only("consolidated.00.pth", "consolidated.01.pth"),
        r"only consolidated\.00\.pth.*Meta's own code",
    ),
    "pickles": (
        only("pytorch_model.bin", config=False),
        r"only pickled weights .pytorch_model\.bin.*safe_serialization",
    ),
    "pickled shards": (only("pytorch_model-00001-of-00002.bin"), "only pickled weights"),
    "shards without an index": (
        only("model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"),
        r"2 of 3 shards .*no model\.safetensors\.index\.json.*download that file",
    ),
    "another name": (only("weights.safetensors"), r"has weights\.safetensors, but neither.*rename"),
    "another framework": (only("tf_model.h5"), r"only tf_model\.h5, weights of another framework"),
    "half a download": (only("model.safetensors.part"), r"a download that did not end"),
    "adapter": (
        only("adapter_config.json", "adapter_model.safetensors", config=False),
        r"is a PEFT adapter .*adapters=\[",
    ),
    "mlx": (configured(quantization={"group_size": 64, "bits": 4}), "quantized by MLX"),
    "multimodal": (configured(model_type="llava", text_config={}), "a multimodal model"),
}


@pytest.mark.parametrize(("change", "message"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_of_another_kind_is_told_by_name(write_checkpoint, change, message):
    folder = write_checkpoint()
    change(folder)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    ("target", "said"),
    [("blobs/removed", "a link to blobs/removed, where nothing is"), (".", "in a circle")],
)
def test_weights_that_are_a_broken_link_are_told_as_such(write_checkpoint, name, target, said):
    folder = write_checkpoint()
    (folder / "model.safetensors").unlink()
    (folder / name).symlink_to(name if target == "." else target)
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read \(.*{said}"):
        open_checkpoint(folder)


def test_other_files_beside_a_whole_checkpoint_are_no_reason_to_refuse_it(write_checkpoint):
    folder = write_checkpoint()
    for name in ("consolidated.safetensors", "m.gguf", "pytorch_model.bin", "x.part"):
        (folder / name).write_bytes(POINTER)
    assert all(kind.found(folder, {}) is None for kind in FOREIGN)
    assert open_checkpoint(folder)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "tokenizer.model",
        "model.safetensors",
        "chat_template.jinja",
        "manifest.json",
        "adapter_model.safetensors",
    ],
)
@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_a_git_lfs_pointer_is_told_by_name_wherever_it_lies(write_checkpoint, name, kind):
    folder = write_checkpoint()
    (folder / name).write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=rf"{name} is a git-LFS pointer.*git lfs pull"):
        resolve(folder, kind=ADAPTER) if kind == "adapter" else neuralchat_lite.load(folder)


def test_shards_that_are_pointers_are_counted(write_checkpoint):
    folder = write_checkpoint(3)
    for path in folder.glob("model-*.safetensors"):
        path.write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=r"00001-of-00003.*pointer.*and 2 more are"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("begins", "what"),
    [
        (b"GGUF\x03\0\0\0", "a GGUF file"),
        (b"PK\x03\x04archive/data.pkl", "a zip file, as torch.save writes it"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"# xet version 0\n", "a git-xet pointer"),
        (b"/annex/objects/SHA256E-s1--a\n", "a git-annex pointer"),
    ],
)
def test_weights_that_are_something_else_are_told_by_their_beginning(
    write_checkpoint, begins, what
):
    folder = write_checkpoint()
    (folder / "model.safetensors").write_bytes(begins + b"\0" * 100)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors is {what}.*: \w+"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("model.safetensors", "give the folder that holds it, with config.json"),
        ("pytorch_model.bin", "pickled weights can run any code"),
        ("notes.txt", "give the folder that holds it"),
    ],
)
def test_a_file_given_as_a_model_has_its_remedy(tmp_path, name, remedy):
    (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=f"is a file, expected a model folder: {remedy}"):
        neuralchat_lite.load(tmp_path / name)


# ---- names of tensors ----


def renamed(change: Callable[[str], str]) -> Callable[[dict[str, torch.Tensor]], None]:
    def apply(weights: dict[str, torch.Tensor]) -> None:
        for name in list(weights):
            weights[change(name)] = weights.pop(name)

    return apply


@pytest.mark.parametrize(
    "change",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.replace("model.", "model._orig_mod."),
        lambda name: name.replace(".mlp", "._fsdp_wrapped_module.mlp"),
        lambda name: "_orig_mod." + name.removeprefix("model."),
    ],
)
def test_wrappers_of_training_are_taken_off_with_one_warning(write_checkpoint, change, caplog):
    plain = open_checkpoint(write_checkpoint())
    folder = write_checkpoint(tensors=renamed(change))
    with caplog.at_level(logging.WARNING):
        wrapped = open_checkpoint(folder)
    for spec in plain.architecture.tensors():
        assert torch.equal(wrapped.weight(spec.name), plain.weight(spec.name))
    [warning] = caplog.messages
    assert "adds in training" in warning


def test_a_wrapper_that_makes_one_name_of_two_is_refused(write_checkpoint):
    def twice(weights):
        weights["_orig_mod.model.norm.weight"] = weights["model.norm.weight"] + 1

    with pytest.raises(CheckpointError, match=r"has model\.norm\.weight twice"):
        open_checkpoint(write_checkpoint(tensors=twice))


def test_an_engine_that_keeps_wrappers_refuses_them(write_checkpoint, find_model, tmp_path):
    source = find_model("made-here")
    for path in source.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(source / "model.safetensors")
    renamed(lambda name: f"module.{name}")(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="'module', which engine 'torch' does not take off"):
        neuralchat_lite.load(tmp_path, engine="torch")


@pytest.mark.parametrize(
    ("prefix", "remedy"),
    [
        ("base_model.model.", "merge_and_unload"),
        ("language_model.", "multimodal"),
        ("model.language_model.", "multimodal"),
        ("llm.inner.", "rename the tensors"),
    ],
)
def test_a_foreign_prefix_is_named_with_its_remedy(write_checkpoint, prefix, remedy):
    folder = write_checkpoint(tensors=renamed(lambda name: prefix + name))
    with pytest.raises(UnsupportedModelError, match=rf"begin with '{prefix}.*{remedy}"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("ending", "who"),
    [("scales", "MLX"), ("qweight", "GPTQ"), ("weight_packed", "compressed"), ("SCB", "bitsandb")],
)
def test_codes_of_other_quantizers_are_told_by_their_names(write_checkpoint, ending, who):
    def add(weights):
        weights[f"model.layers.0.mlp.down_proj.{ending}"] = torch.ones(4)

    with pytest.raises(UnsupportedModelError, match=rf"{ending}, as weights quantized by .*{who}"):
        open_checkpoint(write_checkpoint(tensors=add))


def test_a_fifo_is_not_opened_to_see_what_it_is(write_checkpoint):
    folder = write_checkpoint()
    os.mkfifo(folder / "chat_template.json")
    refuse_foreign(folder)
