"""Blocks of a source in PyTorch, and the run over them: its inputs, and what a kill leaves."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import neuralchat_lite as ncl
from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.families.rope import RotaryTable
from neuralchat_lite.packed.quantize import quantize_checkpoint
from neuralchat_lite.quantization import QUANTIZERS, blockwise, open_quantizer, rtn, search
from neuralchat_lite.quantization.blockwise import BlockResult, Blockwise
from neuralchat_lite.quantization.calibration import Calibration
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.quantization.rtn import quantize_rtn
from neuralchat_lite.quantization.states import Samples
from neuralchat_lite.quantization.target import Target
from neuralchat_lite.quantization.torch_block import TorchBlock

NANO = Path(__file__).parents[2] / "examples/nano/model"
IDS = torch.randint(3, 600, (3, 24), generator=torch.Generator().manual_seed(1))
CONFIG: dict[str, Any] = {"algorithm": "TOY", "group_size": 64, "scheme": "asym"}


class Toy(Blockwise):
    """Round to nearest, with the mean of the inputs in the norms, so that a wrong input is seen.

    stops: raise KeyboardInterrupt before this many blocks are done
    """

    algorithm = "TOY"
    version = 1
    packages: Mapping[str, str] = {}
    uses_wanted = True
    stops = 100
    done = 0

    def block(
        self, block: TorchBlock, targets: Sequence[Target], samples: Samples, seed: int
    ) -> BlockResult:
        if Toy.done >= Toy.stops:
            raise KeyboardInterrupt
        Toy.done += 1
        assert samples.wanted is not None
        matrices = {
            target.name: quantize_rtn(
                block.get_submodule(target.name).weight.data,
                weight_dtype="int4",
                group_size=target.group_size,
                scheme=target.scheme,
                scale_dtype=target.scale_dtype,
            )
            for target in targets
        }
        both = samples.inputs.double().mean() + samples.wanted.double().mean()
        norm = block.get_parameter("input_layernorm.weight").data * (1 + both.float())
        return BlockResult(matrices, {"input_layernorm.weight": norm})


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row for the toy, which lies in a module of its own."""
    module = ModuleType("toy_blockwise")
    module.Toy = Toy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_blockwise", module)
    monkeypatch.setitem(QUANTIZERS, "TOY", "toy_blockwise:Toy")
    monkeypatch.setattr(Toy, "done", 0)
    monkeypatch.setattr(Toy, "stops", 100)


def test_blocks_give_what_transformers_gives() -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32)
    with torch.no_grad():
        want = theirs(IDS, output_hidden_states=True).hidden_states
    source = open_checkpoint(NANO)
    cos, sin = (table[: IDS.shape[1]] for table in RotaryTable(source.architecture).upto(24))
    x: Tensor = source.weight("model.embed_tokens.weight")[IDS].float()
    for index in range(source.architecture.layers - 1):
        x = TorchBlock(source, index)(x, cos, sin)
        torch.testing.assert_close(x, want[index + 1], rtol=1e-4, atol=1e-4)


def quantized(folder: Path) -> bytes:
    made = quantize_checkpoint(
        open_checkpoint(NANO), WeightOnlyQuantConfig(**CONFIG), folder, calibration=Calibration(IDS)
    )
    return (made / "model.safetensors").read_bytes()


@pytest.mark.parametrize("stops", [0, 1, 3])
def test_a_run_that_was_interrupted_goes_on_to_the_same_bytes(
    stops: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = quantized(tmp_path / "whole" / "model")
    monkeypatch.setattr(Toy, "done", 0)
    monkeypatch.setattr(Toy, "stops", stops)
    with pytest.raises(KeyboardInterrupt):
        quantized(tmp_path / "parts" / "model")
    (work,) = (tmp_path / "parts").iterdir()
    for half in ("block-0001.writing", f"inputs-{stops + 1}.writing"):
        (work / half).write_bytes(b"half of a file, left by a kill")
    monkeypatch.setattr(Toy, "stops", 100)
    assert quantized(tmp_path / "parts" / "model") == want
    assert Toy.done == 4, "blocks that were finished are not computed again"
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["model"]


def test_a_kill_between_the_inputs_and_their_block_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = quantized(tmp_path / "whole" / "model")
    write = blockwise.write_block

    def killed(path: Path, *rest: object) -> None:
        if path.name == "block-0002.safetensors":
            raise KeyboardInterrupt
        write(path, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(blockwise, "write_block", killed)
        with pytest.raises(KeyboardInterrupt):
            quantized(tmp_path / "parts" / "model")
    assert quantized(tmp_path / "parts" / "model") == want


def test_other_texts_do_not_go_on_with_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Toy, "stops", 2)
    with pytest.raises(KeyboardInterrupt):
        quantized(tmp_path / "model")
    monkeypatch.setattr(Toy, "stops", 100)
    monkeypatch.setattr(Toy, "done", 0)
    source = open_checkpoint(NANO)
    other = Calibration(IDS.flip(0))
    quantize_checkpoint(
        source, WeightOnlyQuantConfig(**CONFIG), tmp_path / "model", calibration=other
    )
    assert Toy.done == 4


def test_the_calibration_decides_the_entry_of_the_cache(tmp_path: Path) -> None:
    texts = {"texts": ["calculate 1 + 2 + 3 and say it twice, please " * 4], "length": 8}
    first = ncl.quantize(NANO, CONFIG, cache_dir=tmp_path, calibration=texts)
    again = ncl.quantize(NANO, CONFIG, cache_dir=tmp_path, calibration=texts)
    other = ncl.quantize(NANO, CONFIG, cache_dir=tmp_path, calibration={**texts, "samples": 1})
    assert first == again and first != other
    assert Toy.done == 8
    model = ncl.load(NANO, CONFIG, cache_dir=tmp_path, calibration=texts)
    assert model.folder == first


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "packages", {"no_such_package": "no-such-package"})
    with pytest.raises(ConfigError, match=r"no-such-package, which is not installed: pip install"):
        quantized(tmp_path / "model")


IN_INT4 = [
    {"lm_head": "int4"},
    {"overrides": {"lm_head": "int4"}},
    {"overrides": {"model.embed_tokens": "int4"}},
    {"overrides": {"model.embed_tokens": {"group_size": 32}}},
]


@pytest.mark.parametrize("options", IN_INT4, ids=str)
def test_the_version_of_the_search_is_part_of_the_identity_where_something_is_searched(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head and the embedding have no block: they are rounded to nearest."""
    config = WeightOnlyQuantConfig(**CONFIG, **options)
    before = open_quantizer(config, Calibration(IDS)).identity.to_key()
    monkeypatch.setattr(search, "VERSION", search.VERSION + 1)
    assert open_quantizer(config, Calibration(IDS)).identity.to_key() != before


def test_a_search_that_is_not_used_leaves_the_identity_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = WeightOnlyQuantConfig(**CONFIG, overrides={"model.layers.0.*": "int4"})
    before = open_quantizer(config, Calibration(IDS)).identity.to_key()
    monkeypatch.setattr(search, "VERSION", search.VERSION + 1)
    assert open_quantizer(config, Calibration(IDS)).identity.to_key() == before
    monkeypatch.setattr(rtn, "VERSION", rtn.VERSION + 1)
    assert open_quantizer(config, Calibration(IDS)).identity.to_key() != before
