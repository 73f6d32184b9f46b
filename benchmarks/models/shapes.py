"""Models of any size without a download: random weights in a real model's shape.

A shape is a config.json. Its checkpoint is written tensor by tensor, so that a 7B model needs no
14 GB of memory, and is a Hugging Face folder like any other: every engine converts it as it would
a real one. Speed depends on shapes and formats alone, so random weights measure it truly; what
they say is noise, so accuracy needs trained ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from neuralchat_lite.checkpoints.checkpoint import HEAD, RandomCheckpoint, open_checkpoint
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.families.architecture import Architecture, TensorSpec
from neuralchat_lite.files.digests import sha256_of
from neuralchat_lite.files.json_file import read_json
from neuralchat_lite.files.names import WEIGHTS
from neuralchat_lite.files.safetensors_file import DTYPE_NAMES, SafetensorsWriter, StoredTensor

MISTRAL: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_act": "silu",
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
FOLDER_VARIABLE = "NEURALCHAT_LITE_BENCHMARKS"
SPECIAL_WORDS = ("<unk>", "<s>", "</s>")
LITTER = "litter"  # where workers run: some engines leave files in their folder
COMPLETE = "complete.json"  # written last: what the folder holds, and that it is whole


def shape(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return MISTRAL | {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


SHAPES = {
    "7b": shape(4096, 14336, 32, 32, 8),  # Mistral 7B, neural-chat-7b-v3
    "1b": shape(2048, 5632, 22, 32, 4),  # TinyLlama 1.1B
    "100m": shape(768, 2048, 12, 12, 4),
    "10m": shape(256, 768, 4, 8, 4),  # for trying the harness itself
}
ALIASES = {"mistral-7b": "7b"}


def shape_name(name: str) -> str:
    """The shape's own name. Raises ConfigError, listing all, when there is none such."""
    found = ALIASES.get(name, name)
    if found not in SHAPES:
        known = ", ".join([*SHAPES, *ALIASES])
        raise ConfigError(f"there is no shape {name!r}: choose one of {known}")
    return found


def cache_root() -> Path:
    """Where models of the benchmarks are kept: $NEURALCHAT_LITE_BENCHMARKS, else the user's
    cache folder."""
    own = os.environ.get(FOLDER_VARIABLE)
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "neuralchat_lite_benchmarks"


def config_digest(config: dict[str, Any], seed: int = 0) -> str:
    """The sha256 of what decides every byte of a random checkpoint."""
    return hashlib.sha256(json.dumps([config, seed], sort_keys=True).encode()).hexdigest()


def checkpoint_digest(folder: Path) -> str:
    """What two runs must share to have measured the same model.

    A random checkpoint says its shape's digest. A real one is named by the sha256 of its
    config.json and of the headers of its files: names, types and shapes of all tensors. Speed
    depends on no more, and reading 14 GB to find out takes longer than most measurements.
    """
    mark = folder / COMPLETE
    if mark.exists():
        return str(read_json(mark)["sha256"])
    checkpoint = open_checkpoint(folder)
    digest = hashlib.sha256(sha256_of(folder / "config.json").encode())
    for path in checkpoint.files:
        with path.open("rb") as file:
            digest.update(file.read(int.from_bytes(file.read(8), "little")))
    return digest.hexdigest()


def random_model(name: str, root: Path, progress: Callable[[int, int], None] | None = None) -> Path:
    """The folder of a shape's checkpoint, written now unless it is there already.

    progress: called with the bytes written and to be written
    """
    config = SHAPES[shape_name(name)]
    digest = config_digest(config)
    folder = root / f"{shape_name(name)}-{digest[:12]}" / "checkpoint"
    if not (folder / COMPLETE).exists():
        in_one_piece(folder, lambda part: write_checkpoint(config, part, progress), digest)
    return folder


def in_one_piece(folder: Path, write: Callable[[Path], None], digest: str) -> None:
    """Make a folder by `write`, under another name until it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)  # an earlier one that was not finished
    partial.mkdir()
    try:
        write(partial)
        (partial / COMPLETE).write_text(json.dumps({"sha256": digest}), encoding="utf-8")
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_checkpoint(
    config: dict[str, Any], folder: Path, progress: Callable[[int, int], None] | None = None
) -> None:
    """config.json, a tokenizer and model.safetensors in bf16, holding one tensor at a time."""
    source = RandomCheckpoint(config)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    write_tokenizer(config["vocab_size"], folder)
    tensors = [
        StoredTensor(spec.name, DTYPE_NAMES[torch.bfloat16], spec.shape)
        for spec in stored(source.architecture)
    ]
    total = sum(tensor.nbytes for tensor in tensors)
    with SafetensorsWriter(folder / WEIGHTS, tensors, {"format": "pt"}) as writer:
        for tensor in tensors:
            writer.begin(tensor.name)
            writer.write(source.weight(tensor.name))
            if progress is not None:
                progress(writer.size, total)
        writer.finish()


def stored(architecture: Architecture) -> list[TensorSpec]:
    """The tensors of a checkpoint: a tied head is no tensor of its own."""
    return [
        spec
        for spec in architecture.tensors()
        if spec.role != "lm_head" or not architecture.tied or spec.name == HEAD
    ]


def write_tokenizer(vocab_size: int, folder: Path) -> None:
    """A made-up word for each id, "t3", "t4" …: engines that ask for a tokenizer get one."""
    words = [*SPECIAL_WORDS, *(f"t{token}" for token in range(len(SPECIAL_WORDS), vocab_size))]
    vocabulary = {word: token for token, word in enumerate(words)}
    unknown, begin, end = SPECIAL_WORDS
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": token,
                "content": word,
                "special": True,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
            for token, word in enumerate(SPECIAL_WORDS)
        ],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": unknown},
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": unknown,
        "bos_token": begin,
        "eos_token": end,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def weight_counts(architecture: Architecture) -> dict[str, int]:
    """Elements of the matrices by role ("linear", "lm_head", "embedding")."""
    counts: dict[str, int] = {}
    for spec in architecture.tensors():
        if len(spec.shape) == 2:
            counts[spec.role] = counts.get(spec.role, 0) + spec.shape[0] * spec.shape[1]
    return counts


def remove_models(root: Path) -> int:
    """Delete every model that the benchmarks made; the bytes set free."""
    size = 0
    for mark in sorted(root.glob(f"*/*/{COMPLETE}")):
        size += sum(path.stat().st_size for path in mark.parent.rglob("*") if path.is_file())
        shutil.rmtree(mark.parent)
        shutil.rmtree(mark.parent.with_name(LITTER), ignore_errors=True)
    for leftover in sorted(root.glob("*/*.partial")):
        shutil.rmtree(leftover)
    for folder in sorted(root.glob("*/")):
        if not any(folder.iterdir()):
            folder.rmdir()
    return size
