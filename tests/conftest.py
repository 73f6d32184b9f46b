"""What tests of every package share: the real small models, where they are present, and tiny
checkpoints of random weights, in the layouts in which models are published."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Workers of pytest-xdist share the cores. OpenMP reads this when torch is imported.
if WORKERS := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    share = max(1, len(os.sched_getaffinity(0)) // WORKERS)
    os.environ.setdefault("OMP_NUM_THREADS", str(share))
    os.environ.setdefault("NEURALCHAT_LITE_THREADS", str(share))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So a shell starts its background jobs, and their children inherit it. Tests send Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

import torch
from filelock import FileLock
from safetensors.torch import save_file

from neuralchat_lite.checkpoints.random_weights import RandomCheckpoint
from neuralchat_lite.kernels import native

from . import made_model

SHARED = Path(__file__).parents[2] / "shared" / "data"
PUBLISHED = ("stories260K", "tinystories-char-0.97m")
# The models of the tests: the published ones where they are present, and one made here.
TRAINED = (made_model.NAME, *(name for name in PUBLISHED if (SHARED / "models" / name).is_dir()))
TINY = {
    "model_type": "qwen2",  # has biases too
    "vocab_size": 60,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What compiles kernels for minutes begins first, so that no worker waits for it at the end."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in ("test_wheel", "/proof/")))


@pytest.fixture(scope="session")
def made_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the published one, with one model, its reference and its texts. The workers of
    pytest-xdist share it."""
    root = tmp_path_factory.getbasetemp()
    if WORKERS:
        root = root.parent
    made = root / "made-data"
    with FileLock(f"{made}.lock"):
        if not made.is_dir():
            made_model.make_data(root / "unfinished")
            (root / "unfinished").rename(made)
    return made


@pytest.fixture(scope="session")
def find_model(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """A function: a name of TRAINED to the model's folder."""

    def find(name: str) -> Path:
        made = name == made_model.NAME
        data: Path = request.getfixturevalue("made_data") if made else SHARED
        return data / "models" / name

    return find


@pytest.fixture(scope="session", params=TRAINED)
def trained_model(request: pytest.FixtureRequest, find_model: Callable[[str], Path]) -> Path:
    """The folder of a small trained model with golden outputs."""
    return find_model(request.param)


@pytest.fixture(scope="session")
def stories(find_model: Callable[[str], Path]) -> Path:
    """The folder of one small model that tells stories: stories260K, or what stands in for it."""
    return find_model(PUBLISHED[0] if PUBLISHED[0] in TRAINED else made_model.NAME)


@pytest.fixture(params=native.usable_isas())
def isa(request: pytest.FixtureRequest):
    """Every instruction set that this CPU has, one after the other."""
    before = native.isa().value
    native.use_isa(request.param)
    yield request.param
    native.use_isa(before)


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], dict[str, str]]:
    """A function: a model's folder to an environment in which the 7B's name is known offline, and
    stands for that model."""

    def make(model: Path) -> dict[str, str]:
        folder = tmp_path_factory.mktemp("hub")
        repository = folder / "hf/hub/models--Intel--neural-chat-7b-v3-2"
        commit = "0" * 40
        shutil.copytree(model, repository / "snapshots" / commit, copy_function=shutil.copyfile)
        (repository / "refs").mkdir()
        (repository / "refs/main").write_text(commit)
        return os.environ | {
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_OFFLINE": "1",
            "NEURALCHAT_LITE_CACHE": str(folder / "cache"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    return make


@pytest.fixture
def make_adapter(tmp_path: Path) -> Callable[..., Path]:
    """make(base, name="sft", seed=0, **LoraConfig) -> a LoRA folder, written by peft"""
    import peft
    from transformers import AutoModelForCausalLM

    def make(base: Path, name: str = "sft", seed: int = 0, **config: Any) -> Path:
        config = {"r": 4, "lora_alpha": 10, "target_modules": ["q_proj", "v_proj"]} | config
        model = peft.get_peft_model(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
            peft.LoraConfig(task_type="CAUSAL_LM", **config),
        )
        torch.manual_seed(seed)
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                torch.nn.init.normal_(parameter, 0, 0.1)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def tiny_config():
    return dict(TINY)


@pytest.fixture
def write_checkpoint(tmp_path):
    """write(shards=1, dtype=torch.bfloat16, seed=0, tensors=None, **config) -> folder

    tensors: a function that changes the dictionary of tensors before they are written
    """
    made = []

    def write(shards=1, dtype=torch.bfloat16, seed=0, tensors=None, **config) -> Path:
        config = TINY | config
        source = RandomCheckpoint(config, seed, dtype)
        weights = {spec.name: source.weight(spec.name) for spec in source.architecture.tensors()}
        weights = {name: weight.clone() for name, weight in weights.items()}
        if tensors is not None:
            tensors(weights)
        folder = tmp_path / f"checkpoint{len(made)}"
        folder.mkdir()
        made.append(folder)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "tokenizer.json").write_text('{"version": "1.0"}')
        if shards == 1:
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            return folder
        names = list(weights)
        index = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            part = {name: weights[name] for name in names[shard::shards]}
            save_file(part, folder / file, metadata={"format": "pt"})
            index |= dict.fromkeys(part, file)
        text = json.dumps({"metadata": {}, "weight_map": index})
        (folder / "model.safetensors.index.json").write_text(text)
        return folder

    return write


@pytest.fixture
def anonymous_memory():
    """A function: kilobytes of this process that are no mapped file."""

    def read() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0])

    return read


@pytest.fixture
def mapped_file():
    """A function: the name of the file that is mapped at an address, or an empty string."""

    def find(address: int) -> str:
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, *rest = line.split(maxsplit=5)
            first, last = (int(end, 16) for end in span.split("-"))
            if first <= address < last:
                return rest[4] if len(rest) == 5 else ""
        return ""

    return find
