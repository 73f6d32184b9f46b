"""What people have in their folders instead of a checkpoint, each told by name with its remedy.

A kind is a row of FOREIGN. Folders are recognised before anything in them is read as a checkpoint,
so that a person with a GGUF file is not told that config.json is missing. `tensors.py` goes on with
what the names of tensors tell.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from neuralchat_lite.errors import CheckpointError, UnsupportedModelError
from neuralchat_lite.families.config_values import Config
from neuralchat_lite.files.json_file import read_json
from neuralchat_lite.files.names import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    INDEX,
    MANIFEST,
    QUANTIZATION,
    SIDECARS,
    WEIGHTS,
)

READ_FILES = (*SIDECARS, INDEX, MANIFEST, QUANTIZATION, ADAPTER_CONFIG, ADAPTER_WEIGHTS)
SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")
LFS = (
    "a git-LFS pointer, not the file itself",
    "fetch the files with `git lfs install` and `git lfs pull` in the folder, or `hf download`",
)
ANNEX = ("a git-annex pointer, not the file itself", "fetch it with `git annex get`")
PAGE = ("a web page", "download the file itself, with `hf download`")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


# ---- files that are not what their names say ----

# What a file begins with -> what it is, and the remedy. Lower case, without leading white space.
BEGINNINGS: dict[bytes, tuple[str, str]] = {
    b"version https://git-lfs.github.com/spec/": LFS,
    b"version https://hawser.github.com/spec/": LFS,
    b"# xet version": ("a git-xet pointer, not the file itself", "fetch it with `hf download`"),
    b"/annex/objects/": ANNEX,
    b"../.git/annex/": ANNEX,
    b"<!doctype html": PAGE,
    b"<html": PAGE,
    b"gguf": ("a GGUF file", "give it a name that ends in .gguf, and load the file itself"),
    b"pk\x03\x04": (
        "a zip file, as torch.save writes it, which can run any code when read",
        "write it again with transformers' model.save_pretrained(folder, safe_serialization=True)",
    ),
    b"\x1f\x8b": ("packed by gzip", "unpack it"),
}


def beginning(path: Path) -> bytes:
    """The first bytes of a regular file, in lower case; none of anything else."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(64).lstrip().lower()
    except OSError:
        return b""


def read_files_of(folder: Path) -> list[Path]:
    """The files of a folder that this library would read, where they are."""
    shards = (path for path in list_folder(folder) if SHARD.fullmatch(path.name))
    return [*(folder / name for name in (WEIGHTS, *READ_FILES)), *shards]


def refuse_impostors(folder: Path) -> None:
    """Raise CheckpointError for files that only have the names of what they should be, such as
    git-LFS pointers: in checkpoints, quantized folders and adapters."""
    found: dict[bytes, list[str]] = {}
    for path in read_files_of(folder):
        begins = beginning(path)
        for known in BEGINNINGS:
            if begins.startswith(known):
                found.setdefault(known, []).append(path.name)
    for known, names in found.items():
        what, remedy = BEGINNINGS[known]
        others = f" (and {len(names) - 1} more are)" if len(names) > 1 else ""
        raise CheckpointError(f"{folder / names[0]} is {what}{others}: {remedy}")


# ---- folders of other kinds ----


@dataclass(frozen=True)
class Foreign:
    """A kind of folder that is not read.

    found: the folder and its config.json -> what gives it away, or None
    message: with {folder} and {found}
    """

    found: Callable[[Path, Config], str | None]
    message: str
    error: type[CheckpointError] = CheckpointError


def list_folder(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def named(folder: Path, patterns: Iterable[str]) -> list[str]:
    return [
        path.name
        for path in list_folder(folder)
        if any(path.match(pattern) for pattern in patterns)
    ]


def instead_of_weights(*patterns: str) -> Callable[[Path, Config], str | None]:
    """Files of these names where the weights are missing: the first of them."""

    def find(folder: Path, config: Config) -> str | None:
        return None if has_weights(folder) else next(iter(named(folder, patterns)), None)

    return find


def has_weights(folder: Path) -> bool:
    """Also as a link that leads nowhere, which is told where it is read."""
    return any(os.path.lexists(folder / name) for name in (WEIGHTS, INDEX))


def shards_alone(folder: Path, config: Config) -> str | None:
    if has_weights(folder):
        return None
    shards = [path.name for path in list_folder(folder) if SHARD.fullmatch(path.name)]
    if not shards:
        return None
    match = SHARD.fullmatch(shards[0])
    assert match is not None
    return f"{len(shards)} of {int(match[2])} shards ({shards[0]} ...)"


def said_in_config(*keys: str) -> Callable[[Path, Config], str | None]:
    """Objects under one of these keys of config.json: the first of them."""

    def find(folder: Path, config: Config) -> str | None:
        return next((key for key in keys if isinstance(config.get(key), dict)), None)

    return find


def adapter_alone(folder: Path, config: Config) -> str | None:
    alone = (folder / ADAPTER_CONFIG).exists() and not (folder / "config.json").exists()
    return ADAPTER_CONFIG if alone and not has_weights(folder) else None


# The first row that fits counts.
FOREIGN = (
    Foreign(
        adapter_alone,
        "{folder} is a PEFT adapter ({found}), not a model: give its base as the model, and this "
        "folder in adapters=[...] (`--adapter`)",
    ),
    Foreign(
        shards_alone,
        f"{{folder}} has {{found}}, but no {INDEX}, which says what is in them: download that file "
        "too, or load the folder with transformers and write it with save_pretrained",
    ),
    Foreign(
        instead_of_weights("consolidated*.safetensors", "consolidated*.pth"),
        "{folder} has only {found}, weights in the layout of Mistral's and Meta's own code: "
        "download the files in transformers' layout too (config.json and model*.safetensors, "
        "mostly in the same or an '-hf' repository), or convert them with the convert_*_to_hf.py "
        "of transformers",
        UnsupportedModelError,
    ),
    Foreign(
        instead_of_weights("*.gguf"),
        "{folder} has only a GGUF file ({found}), which is a whole model: load {folder}/{found}, "
        "or give from_pretrained model_file={found!r} too",
        UnsupportedModelError,
    ),
    Foreign(
        instead_of_weights("pytorch_model*.bin", *PICKLES),
        "{folder} has only pickled weights ({found}), which can run any code when read: convert "
        "them on a machine where that is acceptable, with transformers' "
        "model.save_pretrained(folder, safe_serialization=True)",
    ),
    Foreign(
        instead_of_weights("*.h5", "*.msgpack", "*.onnx", "*.ot", "*.tflite", "*.npz"),
        "{folder} has only {found}, weights of another framework: download the model*.safetensors "
        "of the same model, or convert them with transformers",
        UnsupportedModelError,
    ),
    Foreign(
        instead_of_weights("*.incomplete", "*.part", "*.aria2", "*.crdownload", "*.download"),
        "{folder} has only {found}, a download that did not end: download the model again",
    ),
    Foreign(
        instead_of_weights("*.safetensors"),
        f"{{folder}} has {{found}}, but neither {WEIGHTS} nor {INDEX}: if it is the whole model, "
        f"rename it to {WEIGHTS}; else download the missing files",
    ),
    Foreign(
        said_in_config("quantization"),
        "{folder} is a model quantized by MLX ({found} in config.json): use the original bf16, "
        "fp16 or fp32 checkpoint",
        UnsupportedModelError,
    ),
    Foreign(
        said_in_config("text_config", "llm_config", "thinker_config", "language_config"),
        "{folder} is a multimodal model ({found} in config.json), which is not supported: use a "
        "text-only model",
        UnsupportedModelError,
    ),
)


def refuse_foreign(folder: Path) -> Config | None:
    """Raise CheckpointError or UnsupportedModelError for a folder of a kind that FOREIGN names.

    Returns the contents of config.json; None when it is missing or damaged, which its reader tells.
    """
    refuse_impostors(folder)
    config: Config | None = None
    with contextlib.suppress(CheckpointError):
        config = read_json(folder / "config.json")
    for kind in FOREIGN:
        found = kind.found(folder, config or {})
        if found is not None:
            raise kind.error(kind.message.format(folder=folder, found=found))
    return config


# ---- single files ----

# Endings of files that are given as a model -> the remedy.
MODEL_FILES = {
    ".gguf": "a GGUF file is a whole model, give it as the model",
    ".safetensors": "give the folder that holds it, with config.json and the tokenizer beside it",
    **dict.fromkeys(
        (".bin", ".pt", ".pth", ".ckpt"),
        "pickled weights can run any code when read and are not, give a folder with config.json "
        "and model.safetensors",
    ),
}
