"""Files in and out of the page cache, as the kernel sees it."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from benchmarks.latency import file_cache


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "weights").write_bytes(os.urandom(1 << 20))
    (tmp_path / "empty").touch()
    return tmp_path


def on_disk(path: Path) -> bool:
    """Whether the file system has a disk below, so that pages can be dropped."""
    mounts = sorted(psutil.disk_partitions(all=True), key=lambda m: len(m.mountpoint))
    kind = next(m.fstype for m in reversed(mounts) if path.is_relative_to(m.mountpoint))
    return kind in {"ext4", "xfs", "btrfs"}


def test_a_file_that_was_read_is_in_memory(folder: Path) -> None:
    file_cache.read_all(folder)
    assert file_cache.resident_share(folder) == 1.0


def test_a_file_alone_is_a_model_too(folder: Path) -> None:
    weights = folder / "deep" / "weights"
    file_cache.read_all(weights)
    assert file_cache.disk_bytes(weights) == 1 << 20
    assert file_cache.resident_share(weights) == 1.0


def test_a_dropped_file_is_not_and_holds_what_it_held(folder: Path) -> None:
    if not on_disk(folder):
        pytest.skip("this temporary folder lies in memory")
    before = (folder / "deep" / "weights").read_bytes()
    assert file_cache.drop(folder) == 0.0
    assert (folder / "deep" / "weights").read_bytes() == before


def test_half_of_a_file_can_be_in_memory(folder: Path) -> None:
    if not on_disk(folder):
        pytest.skip("this temporary folder lies in memory")
    file_cache.drop(folder)
    with (folder / "deep" / "weights").open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
        file.read(1 << 19)
    assert file_cache.resident_share(folder) == pytest.approx(0.5, abs=0.1)


def test_disk_bytes_count_files_in_all_folders(folder: Path) -> None:
    assert file_cache.disk_bytes(folder) == 1 << 20


def test_an_empty_folder_has_nothing_in_memory(tmp_path: Path) -> None:
    assert file_cache.drop(tmp_path) == 0.0
