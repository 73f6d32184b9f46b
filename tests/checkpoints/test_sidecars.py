"""Files beside the weights: links may not bring files of this machine into what is published."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuralchat_lite.adapters.adapter import open_adapter
from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.checkpoints.tokenizer import load_tokenizer
from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.packed.quantize import quantize_checkpoint
from neuralchat_lite.packed.save import save_copy
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig

INT4 = WeightOnlyQuantConfig()
OUT = r"is a link to .*, outside of the folder.*put a copy of the file in its place"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "secret"
    path.parent.mkdir()
    path.write_text('{"model_type": "secret"}')
    return path


def link(path: Path, target: str | os.PathLike[str]) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "vocab.json", "merges.txt"])
@pytest.mark.parametrize("how", ["absolute", "relative", "through a link", "through a folder"])
def test_a_link_out_of_the_folder_is_refused(
    write_checkpoint: Any, secret: Path, name: str, how: str
) -> None:
    folder = write_checkpoint()
    target: str | Path = secret
    if how == "relative":
        target = os.path.relpath(secret, folder)
    elif how == "through a link":
        (folder / "inside").symlink_to(secret)
        target = "inside"
    elif how == "through a folder":
        (folder / "inside").symlink_to(secret.parent)
        target = "inside/secret"
    link(folder / name, target)
    with pytest.raises(CheckpointError, match=f"{name} {OUT}"):
        open_checkpoint(folder)
    if name != "config.json":
        with pytest.raises(CheckpointError, match=f"{name} {OUT}"):
            load_tokenizer(folder)


def test_a_link_within_the_folder_is_followed(write_checkpoint: Any, tmp_path: Path) -> None:
    folder = write_checkpoint()
    (folder / "tokenizer.json").rename(folder / "own.json")
    link(folder / "tokenizer.json", "own.json")
    other = tmp_path / "linked"
    other.symlink_to(folder)  # and the folder may be a link itself
    assert open_checkpoint(other).sidecars()["tokenizer.json"] == b'{"version": "1.0"}'


def in_store(folder: Path, repository: Path) -> Path:
    """A folder in the layout of the hub's cache: a snapshot of links to blobs."""
    snapshot, blobs = repository / "snapshots" / ("0" * 40), repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, blobs / f"{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    return snapshot


def test_a_snapshot_of_the_hub_is_read_wherever_its_store_lies(
    write_checkpoint: Any, tmp_path: Path, secret: Path
) -> None:
    snapshot = in_store(write_checkpoint(), tmp_path / "store" / "models--org--model")
    checkpoint = open_checkpoint(snapshot)
    out = quantize_checkpoint(checkpoint, INT4, tmp_path / "out")
    assert (out / "tokenizer.json").read_text() == '{"version": "1.0"}'
    assert not (out / "tokenizer.json").is_symlink()
    link(snapshot / "tokenizer.json", secret)
    with pytest.raises(CheckpointError, match=OUT):
        open_checkpoint(snapshot)


def test_a_store_that_is_a_link_is_none(write_checkpoint: Any, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    snapshot = in_store(write_checkpoint(), repository)
    (repository / "blobs").rename(tmp_path / "elsewhere")
    (repository / "blobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=OUT):
        open_checkpoint(snapshot)


def test_a_link_into_the_hubs_cache_is_followed(
    write_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = write_checkpoint(), tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    (cache / "blobs").mkdir(parents=True)
    (folder / "tokenizer.json").rename(cache / "blobs" / "1")
    link(folder / "tokenizer.json", cache / "blobs" / "1")
    assert open_checkpoint(folder).sidecars()["tokenizer.json"] == b'{"version": "1.0"}'


@pytest.mark.parametrize("name", ["tokenizer.json", "added_tokens.json", "generation_config.json"])
def test_a_link_that_leads_nowhere_is_named(write_checkpoint: Any, name: str) -> None:
    folder = write_checkpoint()
    link(folder / name, "../../blobs/lost")
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read .*link to .*/lost, where"):
        open_checkpoint(folder)


def a_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def a_device(path: Path) -> None:
    link(path, "/dev/zero")


def a_sparse_giant(path: Path) -> None:
    path.touch()
    os.truncate(path, 10**12)


@pytest.mark.parametrize("make", [a_folder, a_pipe, a_device, a_sparse_giant])
@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "model.safetensors"])
def test_what_is_no_small_regular_file_is_refused(
    write_checkpoint: Any, make: Callable[[Path], None], name: str
) -> None:
    folder = write_checkpoint()
    make(folder / name)
    with pytest.raises(CheckpointError, match=rf"{name} (cannot be read|is a link|has \d+ bytes)"):
        open_checkpoint(folder)


@pytest.mark.parametrize("make", [a_folder, a_pipe, a_device, a_sparse_giant])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.json"])
def test_a_tokenizer_has_regular_files_only(
    write_checkpoint: Any, make: Callable[[Path], None], name: str
) -> None:
    # A copy that is its owner's has tokenizer files that no manifest knows.
    folder = write_checkpoint()
    make(folder / name)
    with pytest.raises(CheckpointError, match=rf"{name} (cannot be read|is a link)"):
        load_tokenizer(folder)


@pytest.mark.parametrize("make", [a_folder, a_pipe, a_device, a_sparse_giant])
@pytest.mark.parametrize(
    "name", ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"]
)
def test_an_adapter_has_regular_files_only(
    write_checkpoint: Any, make_adapter: Any, make: Callable[[Path], None], name: str
) -> None:
    pytest.importorskip("peft", reason="the test extra has it")
    base = open_checkpoint(write_checkpoint())
    folder = make_adapter(base.folder)
    make(folder / name)
    with pytest.raises(CheckpointError, match=rf"{name} (cannot be read|is a link|has \d+ bytes)"):
        open_adapter(folder, base)


def test_a_copy_of_a_quantized_folder_takes_no_file_from_outside(
    write_checkpoint: Any, tmp_path: Path, secret: Path
) -> None:
    folder = quantize_checkpoint(open_checkpoint(write_checkpoint()), INT4, tmp_path / "packed")
    for name, target in (("notes.txt", secret), ("tokenizer.json", secret)):
        link(folder / name, target)
        with pytest.raises(CheckpointError, match=f"{name} {OUT}"):
            save_copy(folder, INT4, tmp_path / "copy")
        (folder / name).unlink()
    link(folder / "tokenizer.json", "lost")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read .*where nothing is"):
        save_copy(folder, INT4, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
