"""Models of any size without a download: random weights in a real model's shape.

The checkpoint is written tensor by tensor, so that a 7B model needs no 14 GB of memory. It is a
Hugging Face folder like any other, and every engine converts it as it would a real one. What the
weights say is noise: accuracy needs trained ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.models.kept import is_whole, write_whole
from benchmarks.models.shapes import SHAPES, config_digest, shape_name
from neuralchat_lite.checkpoints.random_weights import RandomCheckpoint
from neuralchat_lite.families.architecture import Architecture, TensorSpec
from neuralchat_lite.files.folder import write_flushed
from neuralchat_lite.files.names import WEIGHTS
from neuralchat_lite.files.safetensors_file import DTYPE_NAMES, SafetensorsWriter, StoredTensor

SPECIAL_WORDS = ("<unk>", "<s>", "</s>")


def random_model(name: str, root: Path, progress: Callable[[int, int], None] | None = None) -> Path:
    """The folder of a shape's checkpoint, written now unless it is there already.

    progress: called with the bytes written and to be written
    """
    config = SHAPES[shape_name(name)]
    digest = config_digest(config)
    folder = root / f"{shape_name(name)}-{digest[:12]}" / "checkpoint"
    if not is_whole(folder):
        write_whole(folder, lambda part: write_checkpoint(config, part, progress), digest)
    return folder


def write_checkpoint(
    config: dict[str, Any], folder: Path, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write config.json, a tokenizer and model.safetensors in bf16, one tensor at a time."""
    source = RandomCheckpoint(config)
    write_flushed(folder / "config.json", json.dumps(config, indent=2).encode())
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
    """The tensors that a checkpoint stores: a tied head is not stored a second time."""
    return [
        spec for spec in architecture.tensors() if spec.role != "lm_head" or not architecture.tied
    ]


def write_tokenizer(vocab_size: int, folder: Path) -> None:
    """A tokenizer with a made-up word for each id ("t3", "t4" …), as some engines require one."""
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
    write_flushed(folder / "tokenizer.json", json.dumps(tokenizer).encode())
    write_flushed(folder / "tokenizer_config.json", json.dumps(settings).encode())
