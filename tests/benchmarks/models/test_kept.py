"""Kept folders are written whole, and removed when asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.models import kept
from benchmarks.models.kept import COMPLETE, LITTER, is_whole, remove_models, write_whole
from benchmarks.models.random_checkpoint import random_model
from neuralchat_lite.errors import ConfigError


def write_two(folder: Path) -> None:
    """As engines do: without flushing anything."""
    (folder / "weights").write_bytes(b"x")
    (folder / "inner").mkdir()
    (folder / "inner" / "config").write_bytes(b"y")


def test_every_file_is_on_the_disk_before_the_folder_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: set[int] = set()
    before_rename: list[set[int]] = []
    fsync, rename = os.fsync, Path.rename

    def noting_fsync(descriptor: int) -> None:
        flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def noting_rename(self: Path, target: Path) -> Path:
        before_rename.append(set(flushed))
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "rename", noting_rename)
    folder = tmp_path / "model" / "engine-format"
    write_whole(folder, write_two, "digest")
    [seen] = before_rename
    assert {path.stat().st_ino for path in folder.rglob("*")} <= seen
    assert sorted(path.name for path in folder.iterdir()) == [COMPLETE, "inner", "weights"]
    assert is_whole(folder)


def test_a_folder_that_cannot_be_written_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=rf"cannot be written .*{kept.FOLDER_VARIABLE}"):
        write_whole(tmp_path / "file" / "model", write_two, "digest")


def test_cleaning_removes_our_models_alone(tmp_path: Path) -> None:
    folder = random_model("tiny", tmp_path)
    size = sum(path.stat().st_size for path in folder.iterdir())
    others = tmp_path / "mine" / "model" / "weights"
    others.parent.mkdir(parents=True)
    others.write_bytes(b"x")
    (folder.parent / LITTER / "left").mkdir(parents=True)
    (folder.parent / ".tmp-checkpoint-1").mkdir()
    assert remove_models(tmp_path) == size
    assert others.exists() and not folder.parent.exists()
