"""What tests of every package share: the real small models, where they are present."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from neuralchat_lite.kernels import native

SHARED = Path(__file__).parents[2] / "shared" / "data"
MODELS = ("stories260K", "tinystories-char-0.97m")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the shared models and texts are not beside this checkout")
    return SHARED


@pytest.fixture(scope="session", params=MODELS)
def trained_model(request: pytest.FixtureRequest, shared_data: Path) -> Path:
    """The folder of a small trained model with golden outputs."""
    return shared_data / "models" / request.param


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
