"""Merged checkpoints on disk: what transformers loads, and nothing but whole folders."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from neuralchat_lite.adapters.adapter import open_adapter
from neuralchat_lite.adapters.merged import MergedCheckpoint
from neuralchat_lite.checkpoints import write
from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.errors import CacheError
from neuralchat_lite.files.progress import Progress

peft = pytest.importorskip("peft", reason="the test extra has it")
transformers = pytest.importorskip("transformers")
Make = Callable[..., Path]
IDS = torch.tensor([[5, 1, 44, 17, 8, 30, 2]])


@pytest.fixture
def source(write_checkpoint: Make, make_adapter: Make) -> MergedCheckpoint:
    return open_merged(write_checkpoint(), make_adapter)


def open_merged(base: Path, make_adapter: Make) -> MergedCheckpoint:
    checkpoint = open_checkpoint(base)
    return MergedCheckpoint(
        checkpoint,
        [open_adapter(make_adapter(base, name), checkpoint) for name in ("sft", "dpo")],
    )


def test_transformers_computes_pefts_logits_from_the_folder(
    write_checkpoint: Make, make_adapter: Make, tmp_path: Path
) -> None:
    base = write_checkpoint(dtype=torch.float32)
    source = open_merged(base, make_adapter)
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        before, model = plain(IDS).logits, plain
        for adapter in source.merged:
            model = peft.PeftModel.from_pretrained(model, adapter.folder).merge_and_unload()
        want = model(IDS).logits
        folder = write.write_checkpoint(source, tmp_path / "merged")
        loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        got = loaded(IDS).logits
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert float((got - want).abs().max()) < 1e-5
    assert float((got - before).abs().max()) > 1e-2


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("limit", [10**9, 30_000])
def test_the_folder_holds_the_merged_tensors_in_one_file_or_in_shards(
    write_checkpoint: Make,
    make_adapter: Make,
    tmp_path: Path,
    tied: bool,
    limit: int,
) -> None:
    base = write_checkpoint(tie_word_embeddings=tied, shards=2)
    source = open_merged(base, make_adapter)
    folder = write.write_checkpoint(source, tmp_path / "merged", shard_bytes=limit)
    files = sorted(folder.glob("*.safetensors"))
    assert (len(files) > 3) == (limit == 30_000)
    stored = {name: tensor for file in files for name, tensor in load_file(file).items()}
    wanted = {spec.name for spec in source.architecture.tensors()}
    assert stored.keys() == wanted
    assert tied == ("lm_head.weight" not in wanted)
    for name, tensor in stored.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, source.weight(name))
    again = open_checkpoint(folder)  # finds every shard that the index promises
    assert all(torch.equal(again.weight(name), stored[name]) for name in wanted)
    for name, data in source.sidecars().items():
        assert (folder / name).read_bytes() == data
    others = {path.name for path in folder.iterdir()} - source.sidecars().keys()
    index = {"model.safetensors.index.json"} if len(files) > 1 else set()
    assert others == {path.name for path in files} | index
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert torch.equal(
        loaded.state_dict()["model.layers.1.self_attn.v_proj.weight"],
        source.weight("model.layers.1.self_attn.v_proj.weight"),
    )


@pytest.mark.parametrize("limit", [10**9, 30_000])
def test_the_estimate_of_the_disk_is_right_and_never_too_small(
    source: MergedCheckpoint, tmp_path: Path, limit: int
) -> None:
    shards = write.plan_shards(write.stored_tensors(source), limit)
    promised = write.estimate(shards, source.sidecars(), 0, "merging").disk_bytes
    folder = write.write_checkpoint(source, tmp_path / "merged", shard_bytes=limit)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert promised - 100 < size <= promised


def test_too_little_disk_is_told_before_the_start(
    source: MergedCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("neuralchat_lite.files.folder.shutil.disk_usage", lambda _: usage)
    with pytest.raises(CacheError, match=r"merging needs .* are free: make room"):
        write.write_checkpoint(source, tmp_path / "parent" / "merged")
    assert list((tmp_path / "parent").iterdir()) == []


@pytest.mark.parametrize("moment", [1, 20])
def test_an_interrupted_merge_leaves_nothing_behind(
    source: MergedCheckpoint, tmp_path: Path, moment: int
) -> None:
    seen: list[Progress] = []

    def interrupt(step: Progress) -> None:
        seen.append(step)
        if len(seen) >= moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write.write_checkpoint(source, tmp_path / "parent" / "merged", interrupt)
    assert list((tmp_path / "parent").iterdir()) == []


def test_progress_ends_at_its_total(source: MergedCheckpoint, tmp_path: Path) -> None:
    seen: list[Progress] = []
    write.write_checkpoint(source, tmp_path / "merged", seen.append)
    assert {step.stage for step in seen} == {"merge"}
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    assert seen[-1].done == seen[-1].total


def test_a_folder_with_files_is_not_written_to(source: MergedCheckpoint, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("")
    with pytest.raises(CacheError, match="not an empty folder"):
        write.write_checkpoint(source, tmp_path)


MEMORY = """
import json, resource, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from neuralchat_lite.adapters.adapter import open_adapter
from neuralchat_lite.adapters.merged import MergedCheckpoint
from neuralchat_lite.checkpoints import write
from neuralchat_lite.checkpoints.random_weights import RandomCheckpoint

base, folder = RandomCheckpoint(json.loads(sys.argv[1])), Path(sys.argv[2])
(folder / "adapter_config.json").write_text(json.dumps(
    {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": "all-linear"}
))
save_file({
    f"base_model.model.{spec.name.removesuffix('.weight')}.lora_{half}.weight":
        torch.full((8, spec.shape[1]) if half == "A" else (spec.shape[0], 8), 0.01)
    for spec in base.architecture.tensors() if spec.role == "linear" for half in "AB"
}, folder / "adapter_model.safetensors")
source = MergedCheckpoint(base, [open_adapter(folder, base)])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
write.write_checkpoint(source, folder / "out")
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
shards = write.plan_shards(write.stored_tensors(source))
estimate = write.estimate(shards, {}, source.held_bytes(), "merging")
print(after - before, estimate.memory_bytes)
"""


def test_memory_stays_below_the_estimate_which_is_far_below_the_model(
    tiny_config: dict[str, object], tmp_path: Path
) -> None:
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4}
    command = [sys.executable, "-c", MEMORY, json.dumps(tiny_config | sizes), str(tmp_path)]
    grown, promised = map(int, subprocess.check_output(command).split())
    written = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert grown < promised < written  # 126 MB
