"""A Hugging Face folder of safetensors files: mapped, and checked completely before any work."""

from __future__ import annotations

import logging
import os
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuralchat_lite.checkpoints.foreign import refuse_foreign
from neuralchat_lite.checkpoints.kinds import is_packed
from neuralchat_lite.checkpoints.sidecars import open_sidecars
from neuralchat_lite.checkpoints.source import Source, files_identity, read_files
from neuralchat_lite.checkpoints.stored_codes import layout_of, parts_of, without_layout
from neuralchat_lite.checkpoints.tensors import refuse_foreign_tensors, without_wrappers
from neuralchat_lite.errors import CheckpointError, UnsupportedModelError
from neuralchat_lite.families.architecture import HEAD, Architecture, Names
from neuralchat_lite.families.config_json import read_architecture
from neuralchat_lite.files.digests import HashProgress
from neuralchat_lite.files.json_file import read_json
from neuralchat_lite.files.mapped import MappedFile
from neuralchat_lite.files.names import INDEX, SIDECARS, WEIGHTS, is_file_name
from neuralchat_lite.files.safetensors_file import DTYPES, StoredTensor
from neuralchat_lite.files.unchanged import UnchangedFile
from neuralchat_lite.values import shown

log = logging.getLogger(__name__)

# Beginnings of tensors that stand beside a decoder: TRL's value head, a classifier of texts.
OTHER_HEADS = ("v_head.", "score.", "classifier.", "qa_outputs.")
WEIGHT_DTYPES = ("BF16", "F16", "F32")


class Checkpoint(Source):
    """A folder of safetensors files. Make it with `open_checkpoint`, which checks it.

    folder: its path
    files: its safetensors files, sorted by name
    beside: its other files, opened before anything was read from them
    hub: (repository, resolved commit), if it is from the hub
    wrappers: training wrappers that the files have in the names of tensors; left out here
    """

    def __init__(
        self,
        folder: Path,
        architecture: Architecture,
        files: tuple[MappedFile, ...],
        stored: Mapping[str, tuple[MappedFile, StoredTensor]],
        beside: tuple[UnchangedFile, ...],
        hub: tuple[str, str] | None = None,
        wrappers: tuple[str, ...] = (),
    ) -> None:
        self.folder: Path = folder
        self.architecture = architecture
        self.files = files
        self.beside = beside
        self.hub = hub
        self.wrappers = wrappers
        self.name = hub[0].rpartition("/")[2] if hub else folder.resolve().name
        self._stored = stored  # by the names of `Architecture.tensors`

    def weight(self, name: str) -> Tensor:
        """The tensor of this Hugging Face name, a view of the mapped file in the file's dtype.

        "lm_head.weight" is the head in every family. In a tied model it is the embedding.
        """
        file, stored = self._find(name)
        return file.tensor(stored.name)

    def dtype(self, name: str) -> torch.dtype:
        return DTYPES[self._find(name)[1].dtype]

    def sidecars(self) -> dict[str, bytes]:
        return read_files(self.beside)

    def require_unchanged(self) -> None:
        for file in (*self.beside, *self.files):
            file.require_unchanged()

    def identity(
        self, root: Path | None = None, progress: HashProgress | None = None
    ) -> dict[str, Any]:
        # The files that decide the bytes that are written: configuration, tokenizer, weights.
        return files_identity([*self.beside, *self.files], self.hub, root, progress)

    def held_bytes(self) -> int:
        return 0  # all of it is mapped

    def holds_twice(self, place: tuple[MappedFile, StoredTensor], name: str) -> bool:
        """Whether the tensor stored at `place` equals the tensor `name`."""
        file, stored = place
        other, mine = file.tensor(stored.name), self.weight(name)
        return other.shape == mine.shape and all(
            torch.equal(*pair)
            for pair in zip(torch.split(other, 1024), torch.split(mine, 1024), strict=True)
        )

    def _find(self, name: str) -> tuple[MappedFile, StoredTensor]:
        return self._stored[self.architecture.stored_name(name)]


def open_checkpoint(folder: Path | str, hub: tuple[str, str] | None = None) -> Checkpoint:
    """Map a Hugging Face folder: config.json beside model.safetensors, or beside its shards.

    hub: (repository, resolved commit), if it is from the hub

    Raises CheckpointError when a file or tensor is missing, cut short or of the wrong shape,
    UnsupportedModelError when the model is complete but not supported, or not in bf16, fp16 or
    fp32.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is not a folder: give the folder that holds config.json and the weights"
        )
    if is_packed(folder):
        raise CheckpointError(
            f"{folder} is quantized already: load it as it is, or quantize the original checkpoint"
        )
    config = refuse_foreign(folder)
    layout = None if config is None else layout_of(config)
    if config is not None and layout is not None:
        config = without_layout(config)
    beside = open_sidecars(folder, SIDECARS)
    architecture = read_architecture(folder, config)
    paths, promised = find_files(folder)
    files = tuple(map(MappedFile, paths))
    found: dict[str, tuple[MappedFile, StoredTensor]] = {}
    for file in files:
        for name, tensor in file.header.items():
            if name in found:
                raise CheckpointError(
                    f"{name} is in both {found[name][0].name} and {file.name} of {folder}: "
                    "remove the files that are not part of the model"
                )
            found[name] = (file, tensor)
    for name, place in promised.items():
        if name not in found or found[name][0].name != place:
            raise CheckpointError(
                f"{folder / place} lacks {name}, which model.safetensors.index.json lists: "
                "download the checkpoint again"
            )
    found, wrappers = without_wrappers(found, folder)
    parts: dict[str, dict[str, tuple[MappedFile, StoredTensor]]] = {}
    if layout is not None:
        found, parts = parts_of(found, layout)
        found = without_empty_biases(found, parts, architecture)
    refuse_foreign_tensors(found, architecture.names.base, folder)
    matched = match(architecture, found, folder, parts)
    whole = (folder, architecture, files, matched, beside, hub, wrappers)
    if layout is None:
        checkpoint = Checkpoint(*whole)
    else:
        from neuralchat_lite.checkpoints.quantized import QuantizedCheckpoint

        checkpoint = QuantizedCheckpoint(*whole, layout=layout, parts=parts)
    head = architecture.untied_head_name
    if (
        architecture.tied
        and head in found
        and found[head] != matched[architecture.embedding_name]
        and not checkpoint.holds_twice(found[head], HEAD)
    ):
        raise CheckpointError(
            f"{folder}: config.json sets tie_word_embeddings, but {head} is stored and differs "
            'from the embedding: set "tie_word_embeddings": false there to use it'
        )
    return checkpoint


def find_files(folder: Path) -> tuple[tuple[Path, ...], dict[str, str]]:
    """The safetensors files of a folder, and the index's map: tensor name -> file name."""
    index = folder / INDEX
    single = folder / WEIGHTS
    has_single = os.path.lexists(single)
    if not os.path.lexists(index):
        if has_single:
            return (single,), {}
        raise CheckpointError(
            f"{folder} has neither model.safetensors nor model.safetensors.index.json: "
            "download the weights too"
        )
    promised = read_index(index)
    names = sorted(set(promised.values()))
    if has_single and WEIGHTS not in names:
        # One of them is left over from another model or version, and nothing says which.
        raise CheckpointError(
            f"{folder} has both {WEIGHTS} and {INDEX}, which names {len(names)} other files: "
            f"remove {WEIGHTS} to use the shards, or {INDEX} and the shards to use {WEIGHTS}"
        )
    for name in names:
        if not os.path.lexists(folder / name):
            raise CheckpointError(
                f"{folder / name} is missing, one of the {len(names)} shards that {index.name} "
                "names: download it"
            )
    return tuple(folder / name for name in names), promised


def read_index(index: Path) -> dict[str, str]:
    """The map of an index: tensor name -> file name. Raises CheckpointError."""
    promised = read_json(index).get("weight_map")
    if not isinstance(promised, dict) or not promised:
        raise CheckpointError(f"{index} has no weight_map: download it again")
    for name in promised.values():
        if not isinstance(name, str) or not is_file_name(name):
            raise CheckpointError(
                f"{index} names {shown(name)}: "
                "expected a file name without folders, of at most 255 bytes; download it again"
            )
    return promised


def without_empty_biases(
    found: Mapping[str, tuple[MappedFile, StoredTensor]],
    coded: Iterable[str],
    architecture: Architecture,
) -> dict[str, tuple[MappedFile, StoredTensor]]:
    """Without the biases of zeros that some quantizers write beside codes of layers that have none.

    coded: the matrices that are stored as codes
    """
    known = {spec.name for spec in architecture.tensors()}
    strange = {f"{name.removesuffix('.weight')}.bias" for name in coded} - known
    return {
        name: (file, stored)
        for name, (file, stored) in found.items()
        if name not in strange or bool(file.tensor(stored.name).any())
    }


def match(
    architecture: Architecture,
    found: Mapping[str, tuple[MappedFile, StoredTensor]],
    folder: Path,
    coded: Container[str] = (),
) -> dict[str, tuple[MappedFile, StoredTensor]]:
    """Find each tensor that the architecture needs, and check its shape and dtype. A model that was
    saved without a head stores the tensors without the prefix of their names.

    coded: the matrices that are stored as codes, in tensors of their own
    """
    names = architecture.names
    if not any(name.startswith(names.base) for name in found):
        head = f"{names.head}."
        found = {
            name if name.startswith(head) else names.base + name: found[name] for name in found
        }
    head_name, embedding_name = architecture.untied_head_name, architecture.embedding_name
    if architecture.tied and embedding_name not in found and head_name in found:
        found = {**found, embedding_name: found[head_name]}  # stored once, by its other name
    check_layers(architecture, found, folder)
    matched = {}
    for spec in architecture.tensors():
        if spec.name in coded:
            continue
        if spec.name not in found:
            raise CheckpointError(
                f"{folder} lacks the tensor {spec.name} {list(spec.shape)} ({spec.role}): "
                "config.json is of another model, or a file is missing; download the model again"
            )
        file, stored = matched[spec.name] = found[spec.name]
        if stored.shape != spec.shape:
            raise CheckpointError(
                f"{file.path}: {spec.name} has the shape {list(stored.shape)}, but config.json "
                f"implies {list(spec.shape)}: config.json is of another model; download both again"
            )
        if stored.dtype not in WEIGHT_DTYPES:
            raise UnsupportedModelError(
                f"{file.path}: {spec.name} is {stored.dtype}, expected one of {WEIGHT_DTYPES}: "
                "use the original bf16, fp16 or fp32 checkpoint"
            )
    unused = found.keys() - matched.keys()
    if architecture.tied:
        unused -= {head_name}  # the caller compares it
    ignored = sorted(name for name in unused if is_harmless(name, names))
    extra = sorted(unused - set(ignored))
    if ignored:
        log.warning(
            "%s: %d tensors are not part of the decoder and are ignored: %s",
            folder,
            len(ignored),
            ", ".join(ignored[:3]) + (" ..." if len(ignored) > 3 else ""),
        )
    if extra:
        raise UnsupportedModelError(
            f"{folder} has {len(extra)} tensors that a {architecture.model_type} decoder does not "
            f"use, such as {extra[0]}: without them, results would be wrong; use another model"
        )
    return matched


def is_harmless(name: str, names: Names) -> bool:
    """Whether a tensor that no decoder needs is one that checkpoints are known to have."""
    return name.endswith(names.ignored) or name.removeprefix(names.base).startswith(OTHER_HEADS)


def check_layers(architecture: Architecture, found: Iterable[str], folder: Path) -> None:
    """Raise CheckpointError for fewer layers in the files than config.json promises."""
    before = f"{architecture.names.base}{architecture.names.layers}."
    numbers = {
        name.removeprefix(before).partition(".")[0] for name in found if name.startswith(before)
    }
    stored = sum(number.isdecimal() for number in numbers)
    if stored and stored < architecture.layers:
        raise CheckpointError(
            f"{folder} lacks layers: config.json promises num_hidden_layers {architecture.layers}, "
            f"the weights have {stored}: they do not belong together, or a file is missing"
        )
