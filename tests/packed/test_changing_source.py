"""A source that changes while it is quantized: refused by name, and nothing wrong stays."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuralchat_lite.adapters.adapter import open_adapter
from neuralchat_lite.adapters.merged import MergedCheckpoint
from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.checkpoints.source import Source
from neuralchat_lite.checkpoints.write import write_checkpoint as write_merged
from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.files.progress import Progress
from neuralchat_lite.packed.cache import cached, entries
from neuralchat_lite.packed.format import open_packed
from neuralchat_lite.packed.quantize import quantize_checkpoint
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig

INT4 = WeightOnlyQuantConfig()
HUB = ("org/model", "0" * 40)
SHARD = "model-00002-of-00002.safetensors"
Change = Callable[[Path], None]


def rewrite(path: Path) -> None:
    """Another last byte, in place, with size and time of change set back."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path) -> None:
    """Another file under the name, of the same size and times."""
    before, other = path.stat(), path.with_name("other")
    data = path.read_bytes()
    other.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(path)


def remove(path: Path) -> None:
    path.unlink()


CHANGES = [rewrite, replace, remove]
FILES = [SHARD, "config.json", "tokenizer.json"]


def at_first(stage: str, change: Change, path: Path) -> Callable[[Progress], None]:
    """A progress callback that changes a file once, when a stage has begun."""
    done: list[Path] = []

    def callback(step: Progress) -> None:
        if step.stage == stage and not done:
            done.append(path)
            change(path)

    return callback


@pytest.mark.parametrize("hub", [None, HUB])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_after_it_was_opened_is_refused(
    write_checkpoint: Any, tmp_path: Path, change: Change, name: str, hub: Any
) -> None:
    folder = write_checkpoint(2)
    source = open_checkpoint(folder, hub)
    change(folder / name)
    with pytest.raises(CheckpointError, match=rf"{name} has changed since it was opened.*again"):
        cached(source, INT4, root=tmp_path / "cache")
    assert entries(tmp_path / "cache") == []
    assert not list((tmp_path / "cache").glob(".tmp-*"))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("stage", ["hash", "quantize"])
def test_a_file_that_changes_while_it_is_hashed_or_quantized_is_refused(
    write_checkpoint: Any, tmp_path: Path, change: Change, name: str, stage: str
) -> None:
    folder, root = write_checkpoint(2), tmp_path / "cache"
    progress = at_first(stage, change, folder / name)
    with pytest.raises(CheckpointError, match=f"{name} has changed since it was opened"):
        cached(open_checkpoint(folder), INT4, root=root, progress=progress)
    assert entries(root) == []
    if (
        change is not remove and name != "config.json"
    ):  # and the next one is that of the new contents
        source = open_checkpoint(folder)
        want = quantize_checkpoint(source, INT4, tmp_path / "want")
        entry = cached(source, INT4, root=root)
        assert open_packed(entry, verify="always")
        for file in ("model.safetensors", "config.json", "tokenizer.json"):
            assert (entry / file).read_bytes() == (want / file).read_bytes()


@pytest.fixture
def merged(write_checkpoint: Any, make_adapter: Any) -> MergedCheckpoint:
    base = open_checkpoint(write_checkpoint(2))
    folder = make_adapter(base.folder)
    (folder / "tokenizer.json").write_text('{"version": "2.0"}')
    return MergedCheckpoint(base, [open_adapter(folder, base)])


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "adapter_config.json", "tokenizer.json"]
)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("stage", ["open", "hash", "quantize", "merge"])
def test_an_adapter_that_changes_is_refused(
    merged: MergedCheckpoint, tmp_path: Path, change: Change, name: str, stage: str
) -> None:
    pytest.importorskip("peft", reason="the test extra has it")
    path = merged.merged[0].folder / name
    out = tmp_path / "made" / "out"
    progress = at_first(stage, change, path)
    if stage == "open":
        change(path)
    make: Callable[..., object] = write_merged if stage == "merge" else quantize
    with pytest.raises(CheckpointError, match=f"{name} has changed since it was opened"):
        make(merged, out, progress)
    assert not out.parent.exists() or not list(out.parent.iterdir())


def quantize(source: Source, out: Path, progress: Callable[[Progress], None]) -> None:
    quantize_checkpoint(source, INT4, out, progress=progress)


def test_a_base_that_changes_under_its_adapters_is_refused(
    merged: MergedCheckpoint, tmp_path: Path
) -> None:
    assert merged.base.folder is not None
    progress = at_first("merge", rewrite, merged.base.folder / SHARD)
    with pytest.raises(CheckpointError, match=f"{SHARD} has changed since it was opened"):
        write_merged(merged, tmp_path / "out", progress)
    assert not (tmp_path / "out").exists()


def test_a_write_in_the_same_tick_of_the_clock_is_seen(
    write_checkpoint: Any, tmp_path: Path
) -> None:
    for _ in range(5):
        folder = write_checkpoint()
        (folder / "config.json").chmod(0o600)  # a change of this very moment
        source = open_checkpoint(folder)
        rewrite(folder / "config.json")
        with pytest.raises(CheckpointError, match=r"config\.json has changed"):
            source.identity()


def test_the_mapped_file_is_the_one_that_was_opened(write_checkpoint: Any) -> None:
    """Whatever has its name by the time that the safetensors library maps it."""
    from neuralchat_lite.files import mapped

    folder = write_checkpoint()
    path = folder / "model.safetensors"
    want = open_checkpoint(folder).weight("model.embed_tokens.weight").clone()

    class Late(mapped.MappedFile):
        def _map(self) -> Any:
            replace_with_zeros(self.path)
            return super()._map()

    got = Late(path).tensor("model.embed_tokens.weight")
    assert got.equal(want)


def replace_with_zeros(path: Path) -> None:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    path.with_name("other").write_bytes(data[:start] + bytes(len(data) - start))
    path.with_name("other").rename(path)


def test_opened_files_are_closed_with_their_checkpoint(write_checkpoint: Any) -> None:
    folder = write_checkpoint(3)
    before = open_files()
    checkpoint = open_checkpoint(folder)
    assert open_files() > before
    del checkpoint
    assert open_files() == before


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
