"""The unmutated folders: one tiny random model of each family, with the little model's tokenizer.

Weights are large enough that every tensor shows in the logits. The same seed gives the same bytes
on every machine, so a case can be repeated by its number alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from neuralchat_lite.families.architecture import TensorSpec
from neuralchat_lite.families.config_json import parse_architecture

NANO = Path(__file__).parents[2] / "examples/nano/model"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
SIZES = {
    "vocab_size": 679,  # the tokenizer's
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": 14},
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "tie_word_embeddings": True,
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA3,
    },
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "rope_theta": 10000.0, "rope_scaling": YARN},
}
DTYPES = {"mistral": torch.bfloat16, "llama": torch.float16, "qwen2": torch.float32}
SHARDS = {"llama": 3, "qwen2": 2}
# Spread by role: products stay near one, and logits differ enough for a likeliest token.
SPREAD = {"linear": 0.15, "lm_head": 0.4, "embedding": 1.0, "bias": 0.3}


def make_base(family: str, folder: Path) -> Path:
    """Write the folder of a family's tiny model."""
    config = {**SIZES, "model_type": family, **CONFIGS[family]}
    dtype = DTYPES.get(family, torch.bfloat16)
    weights = {
        spec.name: random_tensor(f"{family}/{spec.name}", spec.shape, spec.role).to(dtype)
        for spec in parse_architecture(config).tensors()
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    generation = {"bos_token_id": 1, "eos_token_id": 2, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    for name in TOKENIZER_FILES:
        shutil.copyfile(NANO / name, folder / name)
    write_weights(weights, folder, SHARDS.get(family, 1))
    return folder


def tensors_of(folder: Path) -> list[TensorSpec]:
    config = json.loads((folder / "config.json").read_text())
    return list(parse_architecture(config).tensors())


def random_tensor(name: str, shape: tuple[int, ...], role: str) -> Tensor:
    digest = hashlib.sha256(name.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
    if role == "norm":
        return 0.5 + torch.rand(shape, generator=generator)
    return SPREAD[role] * torch.randn(shape, generator=generator)


def write_weights(weights: dict[str, Tensor], folder: Path, shards: int) -> None:
    metadata = {"format": "pt"}
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata=metadata)
        return
    names, index = list(weights), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: weights[name] for name in names[shard::shards]}
        save_file(part, folder / file, metadata=metadata)
        index |= dict.fromkeys(part, file)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
