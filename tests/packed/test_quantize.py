import errno
import json
import os
import subprocess
import sys

import pytest
import torch

from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.checkpoints.random_weights import RandomCheckpoint
from neuralchat_lite.errors import CacheError, CheckpointError, ConfigError
from neuralchat_lite.files.folder import Estimate
from neuralchat_lite.files.safetensors_file import SafetensorsWriter
from neuralchat_lite.packed import quantize as convert
from neuralchat_lite.packed.foreign import marked
from neuralchat_lite.packed.format import open_packed
from neuralchat_lite.packed.quantize import estimate, plan, quantize_checkpoint
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig

INT4 = WeightOnlyQuantConfig()


@pytest.fixture
def checkpoint(write_checkpoint):
    return open_checkpoint(write_checkpoint())


def test_the_folder_has_the_files_that_the_manifest_lists_and_no_path(checkpoint, tmp_path):
    out = quantize_checkpoint(checkpoint, INT4, tmp_path / "new" / "out")
    manifest = json.loads((out / "manifest.json").read_text())
    assert {path.name for path in out.iterdir()} == {
        *manifest["files"],
        "manifest.json",
        ".verified",
    }
    assert (out / "tokenizer.json").read_bytes() == (
        checkpoint.folder / "tokenizer.json"
    ).read_bytes()
    config = (checkpoint.folder / "config.json").read_bytes()
    assert (out / "config.json").read_bytes() == marked(config)
    assert set(manifest["source"]["files"]) == {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
    }
    assert manifest["quantizer"] == {"name": "rtn", "version": 1, "settings": {"search": 1}}
    assert str(tmp_path) not in json.dumps(manifest)
    assert list(tmp_path.glob("**/.tmp-*")) == []


def test_one_checkpoint_gives_the_same_bytes_each_time(checkpoint, tmp_path):
    one, other = (quantize_checkpoint(checkpoint, INT4, tmp_path / name) for name in "ab")
    for path in one.iterdir():
        if path.name != ".verified":
            assert path.read_bytes() == (other / path.name).read_bytes()


def test_random_weights_are_quantized_like_a_checkpoint_with_them(
    write_checkpoint, tiny_config, tmp_path
):
    stored = open_checkpoint(write_checkpoint(seed=3))
    one = quantize_checkpoint(stored, INT4, tmp_path / "stored")
    other = quantize_checkpoint(RandomCheckpoint(tiny_config, 3), INT4, tmp_path / "random")
    name = "model.safetensors"
    assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.parametrize("scheme", ["sym", "asym"])
def test_the_estimate_of_the_disk_is_right_to_its_allowance(checkpoint, tmp_path, scheme):
    config = WeightOnlyQuantConfig(scheme=scheme)
    want = estimate(checkpoint, plan(checkpoint, config), checkpoint.sidecars()).disk_bytes
    out = quantize_checkpoint(checkpoint, config, tmp_path / "out")
    size = sum(path.stat().st_size for path in out.iterdir())
    assert want - (1 << 16) < size <= want


MEMORY = """
import json, resource, sys
from pathlib import Path
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.checkpoints.random_weights import RandomCheckpoint
from neuralchat_lite.packed.quantize import estimate, plan, quantize_checkpoint

source = RandomCheckpoint(json.loads(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
config = WeightOnlyQuantConfig(weight_dtype="int8")
out = quantize_checkpoint(source, config, Path(sys.argv[2]))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(after - before, estimate(source, plan(source, config), {}).memory_bytes)
"""


def test_memory_stays_below_the_estimate_which_is_far_below_the_model(tiny_config, tmp_path):
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 6}
    config = json.dumps(tiny_config | sizes)
    command = [sys.executable, "-c", MEMORY, config, str(tmp_path / "out")]
    grown, promised = map(int, subprocess.check_output(command).split())
    written = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert grown < promised < written  # 96 MB


def test_progress_ends_at_its_total_and_names_tensors(checkpoint, tmp_path):
    seen = []
    quantize_checkpoint(checkpoint, INT4, tmp_path / "out", progress=seen.append)
    steps = [step for step in seen if step.stage == "quantize"]
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[-1].done == steps[-1].total
    assert "model.layers.1.mlp.down_proj.codes" in {step.name for step in steps}
    assert {step.stage for step in seen} == {"hash", "quantize"}


@pytest.mark.parametrize("moment", [1, 7, 30])
def test_an_interrupt_leaves_nothing_behind(checkpoint, tmp_path, moment):
    seen = []

    def interrupt(step):
        seen.append(step)
        if step.stage == "quantize" and len(seen) >= moment:
            raise KeyboardInterrupt

    parent = tmp_path / "parent"
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(checkpoint, INT4, parent / "out", progress=interrupt)
    assert list(parent.iterdir()) == []
    quantize_checkpoint(checkpoint, INT4, parent / "out")
    open_packed(parent / "out", verify="always")


def test_a_disk_that_fills_up_is_a_cache_error_and_leaves_nothing(
    checkpoint, tmp_path, monkeypatch
):
    honest = SafetensorsWriter.put

    def full(self, data):
        if self.size > 50_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        honest(self, data)

    monkeypatch.setattr(SafetensorsWriter, "put", full)
    parent = tmp_path / "parent"
    with pytest.raises(
        CacheError, match=r"No space left.*NEURALCHAT_LITE_CACHE.*quantize MODEL -o"
    ):
        quantize_checkpoint(checkpoint, INT4, parent / "out")
    assert list(parent.iterdir()) == []


def test_too_little_disk_or_memory_is_told_with_figures_before_the_start(
    checkpoint, tmp_path, monkeypatch
):
    with pytest.raises(CacheError, match=r"needs 1e\+06 GB in .* GB are free"):
        Estimate(disk_bytes=10**15, memory_bytes=0).require(tmp_path)
    with pytest.raises(CacheError, match=r"needs 1e\+06 GB of memory, .* GB are available"):
        Estimate(disk_bytes=0, memory_bytes=10**15).require(tmp_path)
    monkeypatch.setattr(convert, "estimate", lambda *_: Estimate(10**15, 0))
    with pytest.raises(CacheError, match="are free"):
        quantize_checkpoint(checkpoint, INT4, tmp_path / "parent" / "out")
    assert list((tmp_path / "parent").iterdir()) == []


def test_a_folder_with_files_is_not_written_to(checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    quantize_checkpoint(checkpoint, INT4, tmp_path / "out")  # an empty one is taken
    with pytest.raises(CacheError, match="is not an empty folder"):
        quantize_checkpoint(checkpoint, INT4, tmp_path / "out")
    with pytest.raises(CacheError, match="is not an empty folder"):
        quantize_checkpoint(checkpoint, INT4, tmp_path / "out" / "config.json")


def test_leftovers_of_a_killed_process_are_removed_and_those_of_a_live_one_kept(
    checkpoint, tmp_path
):
    parent = tmp_path / "parent"
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead, alive = parent / f".tmp-out-{process.pid}", parent / f".tmp-out-{os.getppid()}"
    for folder in (dead, alive):
        folder.mkdir(parents=True)
    quantize_checkpoint(checkpoint, INT4, parent / "out")
    assert not dead.exists()
    assert alive.exists()


def test_a_temporary_folder_in_use_is_left_alone(checkpoint, tmp_path):
    busy = tmp_path / f".tmp-out-{os.getpid()}"  # another thread, at the same destination
    busy.mkdir()
    (busy / "model.safetensors").write_text("half")
    with pytest.raises(CacheError, match="File exists"):
        quantize_checkpoint(checkpoint, INT4, tmp_path / "out")
    assert (busy / "model.safetensors").read_text() == "half"


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.down_proj.weight",
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "lm_head.weight",
    ],
)
def test_a_weight_that_is_not_finite_stops_everything(write_checkpoint, tmp_path, name):
    def spoil(weights):
        weights[name].view(-1)[5] = float("nan")

    source = open_checkpoint(write_checkpoint(tensors=spoil))
    with pytest.raises(CheckpointError, match=rf"{name}\[.*5\] is nan"):
        quantize_checkpoint(source, INT4, tmp_path / "parent" / "out")
    assert list((tmp_path / "parent").iterdir()) == []


def test_underflows_are_counted_in_the_manifest(write_checkpoint, tmp_path):
    def shrink(weights):
        weights["model.layers.1.mlp.down_proj.weight"][7, 32:96] = 1e-9

    source = open_checkpoint(write_checkpoint(tensors=shrink, dtype=torch.float32))
    model = open_packed(quantize_checkpoint(source, INT4, tmp_path / "out"))
    found = model.manifest["statistics"]["scale_underflows"]
    assert found == {"model.layers.1.mlp.down_proj": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"overrides": {"model.layers.0.mlp.down_prj": "int8"}},
            r"pattern 'model\.layers\.0\.mlp\.down_prj', which matches no matrix.*mean .*down_proj",
        ),
        ({"overrides": {"model.layers.9.*": "int8"}}, r"matches no matrix.*full name of a module"),
        ({"overrides": {"*": "int8", "lm_head": "int4"}}, "'lm_head', but an earlier pattern"),
        (
            {"overrides": {"lm_head": "int4"}, "modules_to_not_convert": ["lm_head"]},
            "'lm_head', but an earlier pattern or modules_to_not_convert decides",
        ),
    ],
)
def test_an_override_that_changes_no_matrix_is_refused(checkpoint, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        quantize_checkpoint(checkpoint, WeightOnlyQuantConfig(**options), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_module_that_the_model_lacks_is_refused_with_a_suggestion(checkpoint, tmp_path):
    config = WeightOnlyQuantConfig(modules_to_not_convert=["down_prj"])
    with pytest.raises(ConfigError, match=r"'down_prj', which .*did you mean 'down_proj'"):
        quantize_checkpoint(checkpoint, config, tmp_path / "parent" / "out")
    assert not (tmp_path / "parent" / "out").exists()
