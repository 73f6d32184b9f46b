"""Tiny checkpoints on disk, of random weights, in the layouts in which models are published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from neuralchat_lite.weights.checkpoint import RandomCheckpoint

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
