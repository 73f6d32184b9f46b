"""A new kind of source is a class and a row: a toy file format that holds codes already."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import neuralchat_lite as ncl
from neuralchat_lite.checkpoints import SOURCES
from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.checkpoints.source import Source
from neuralchat_lite.errors import CheckpointError, ConfigError
from neuralchat_lite.kernels.layout import PackedMatrix
from neuralchat_lite.packed.format import open_packed

NANO = Path(__file__).parents[2] / "examples/nano/model"
QUESTION = [{"role": "user", "content": "calculate 100 + 520 + 60"}]


class ToySource(Source):
    """A file that says where a quantized folder lies, and has its codes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem
        self.stored = open_packed(Path(path.read_text()))
        self.architecture = self.stored.architecture

    def weight(self, name: str) -> torch.Tensor:
        found = self.stored.weight(name)
        assert isinstance(found, torch.Tensor), "codes are asked for by `packed`"
        return found

    def dtype(self, name: str) -> torch.dtype:
        return torch.bfloat16

    def packed(self, name: str) -> PackedMatrix | None:
        module = name.removesuffix(".weight")
        is_head = self.architecture.tied and "embed" in module
        found = self.stored.weight("lm_head.weight" if is_head else name)
        return found if isinstance(found, PackedMatrix) else None

    def identity(self, root: Path | None = None, progress: Any = None) -> dict[str, Any]:
        return {"toy": self.path.read_text()}

    def held_bytes(self) -> int:
        return 0

    def sidecars(self) -> dict[str, bytes]:
        names = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
        return {name: (NANO / name).read_bytes() for name in names}


def open_toy(path: Path, hub: tuple[str, str] | None) -> Source:
    assert hub is None
    return ToySource(path)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file of the toy format, and a row for it."""
    module = ModuleType("toy_source")
    module.open_toy = open_toy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_source", module)
    monkeypatch.setitem(SOURCES, ".toy", "toy_source:open_toy")
    monkeypatch.setenv("NEURALCHAT_LITE_CACHE", str(tmp_path / "cache"))
    folder = ncl.quantize(NANO, {"group_size": 64}, tmp_path / "quantized")
    file = tmp_path / "nano.toy"
    file.write_text(str(folder))
    return file


def test_a_file_with_codes_is_loaded_by_its_row_alone(toy: Path, tmp_path: Path) -> None:
    model = ncl.load(toy, {"group_size": 64})
    want = ncl.load(tmp_path / "quantized")
    assert model.generate(QUESTION).text == want.generate(QUESTION).text
    assert model.folder.name.startswith("nano-int4-g64-")
    weights = "model.safetensors"
    assert (model.folder / weights).read_bytes() == (tmp_path / "quantized" / weights).read_bytes()


def test_codes_are_not_taken_for_others(toy: Path) -> None:
    with pytest.raises(ConfigError, match="stored with group_size 64, but 32 was asked for"):
        ncl.load(toy)


def test_each_matrix_of_a_file_may_have_settings_of_its_own(toy: Path, tmp_path: Path) -> None:
    mixed = {
        "scheme": "affine",
        "overrides": {
            "*.down_proj": {"weight_dtype": "int8", "group_size": 128},
            "lm_head": {"scheme": "asym", "scale_dtype": "bf16"},
            "model.embed_tokens": "int8",
        },
    }
    folder = ncl.quantize(NANO, mixed, tmp_path / "mixed")
    toy.write_text(str(folder))
    weights = "model.safetensors"
    model = ncl.load(toy, mixed)
    assert (model.folder / weights).read_bytes() == (folder / weights).read_bytes()
    others = {**mixed["overrides"], "*.down_proj": {"weight_dtype": "int8"}}  # type: ignore[dict-item]
    with pytest.raises(
        ConfigError, match=r"down_proj.weight is stored with group_size 128, but 32"
    ):
        ncl.load(toy, {**mixed, "overrides": others})


def test_a_file_without_a_row_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nano.toy").write_text("")
    with pytest.raises(CheckpointError, match="is a file, expected a model folder"):
        ncl.load(tmp_path / "nano.toy")


def test_a_checkpoint_has_no_codes() -> None:
    source = open_checkpoint(NANO)
    assert source.packed("model.layers.0.mlp.up_proj.weight") is None
