"""A PEFT LoRA folder: mapped, and checked to fit its base exactly."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from neuralchat_lite.adapters.config import REMEDY, AdapterConfig, read_adapter_config
from neuralchat_lite.checkpoints.checkpoint import WEIGHT_DTYPES
from neuralchat_lite.checkpoints.finite import all_finite
from neuralchat_lite.checkpoints.foreign import refuse_impostors
from neuralchat_lite.checkpoints.sidecars import open_sidecars
from neuralchat_lite.checkpoints.source import Source
from neuralchat_lite.errors import CheckpointError, UnsupportedModelError
from neuralchat_lite.files.mapped import MappedFile
from neuralchat_lite.files.names import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CHAT_TEMPLATES,
    TOKENIZER,
    VOCABULARIES,
)
from neuralchat_lite.files.safetensors_file import StoredTensor
from neuralchat_lite.files.unchanged import UnchangedFile
from neuralchat_lite.values import shown

FACTOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])(\.default)?\.weight")
# Whole layers: PEFT stores a copy of the head and the embedding when one of them is a target.
COPY = re.compile(r"base_model\.model\.(?P<module>.+?)(\.base_layer)?\.weight")


class Adapter:
    """One LoRA adapter, mapped. Make it with `open_adapter`, which checks it.

    folder: its path
    hub: (repository, resolved revision), if it is from the hub
    name: the last part of the folder's or the repository's name
    modules: the modules of the base that it changes
    """

    def __init__(
        self,
        folder: Path,
        config: AdapterConfig,
        stored: Mapping[str, Mapping[str, StoredTensor]],
        file: MappedFile,
        beside: tuple[UnchangedFile, ...],
        hub: tuple[str, str] | None,
    ) -> None:
        self.folder = folder
        self.config = config
        self.hub = hub
        self.name = hub[0].rpartition("/")[2] if hub else folder.resolve().name
        self.modules = frozenset(stored)
        self._stored = stored  # module -> "A" or "B" -> tensor
        self._file = file
        self._beside = beside

    def factors(self, module: str) -> tuple[Tensor, Tensor, float]:
        """A [rank, columns] and B [rows, rank] of a module in fp32, and the scale of B @ A."""
        a, b = (self._file.tensor(self._stored[module][half].name).float() for half in "AB")
        return a, b, self.config.scale_of(module)

    def tokenizer_files(self) -> list[UnchangedFile]:
        return [file for file in self._beside if file.name in TOKENIZER]

    def files(self) -> list[UnchangedFile]:
        """The files that decide the merged weights and the tokenization."""
        config = [file for file in self._beside if file.name == ADAPTER_CONFIG]
        return [*config, self._file, *self.tokenizer_files()]


def open_adapter(folder: Path, base: Source, hub: tuple[str, str] | None = None) -> Adapter:
    """Map a PEFT LoRA folder and check that it fits this base exactly.

    Raises CheckpointError when a file or tensor is missing, damaged, not finite, or of another
    model; UnsupportedModelError when it is complete but not plain LoRA on matrices.
    """
    refuse_impostors(folder)
    beside = open_sidecars(folder, (ADAPTER_CONFIG, *TOKENIZER))
    config = read_adapter_config(folder)
    path = folder / ADAPTER_WEIGHTS
    if not os.path.lexists(path):
        pickled = (folder / "adapter_model.bin").exists()
        raise CheckpointError(
            f"{folder} has no {ADAPTER_WEIGHTS}"
            + (
                ", only pickled weights, which can run any code when read: convert them on a "
                "machine where that is acceptable, with peft's save_pretrained"
                if pickled
                else ": download the adapter again"
            )
        )
    file = MappedFile(path)
    stored = pair(path, file.header)
    shapes = {
        spec.module: (spec.shape[0], spec.shape[1])
        for spec in base.architecture.tensors()
        if spec.is_matrix
    }
    config = config.on(shapes)
    check_modules(path, stored, config, shapes)
    if base.architecture.tied and "lm_head" in stored:
        raise UnsupportedModelError(
            f"{path} changes lm_head, but the base shares it with its embedding "
            "(tie_word_embeddings), which would change too: untie the base first (save it with "
            'an lm_head of its own and "tie_word_embeddings": false)'
        )
    for module, halves in stored.items():
        check_shapes(path, module, halves, config.rank_of(module), shapes[module])
    check_copies(file, [name for name in file.header if not FACTOR.fullmatch(name)], base)
    adapter = Adapter(folder, config, stored, file, beside, hub)
    check_finite(path, adapter)
    check_tokenizer(adapter)
    return adapter


def pair(path: Path, header: Mapping[str, StoredTensor]) -> dict[str, dict[str, StoredTensor]]:
    """The LoRA matrices of a file by module and half. Each half must be there exactly once."""
    stored: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in header.items():
        found = FACTOR.fullmatch(name)
        if found is None:
            continue
        halves = stored.setdefault(found["module"], {})
        if found["half"] in halves:
            raise CheckpointError(
                f"{path} has one matrix under two names, {name} and "
                f"{halves[found['half']].name}: remove one of them"
            )
        if tensor.dtype not in WEIGHT_DTYPES:
            raise UnsupportedModelError(
                f"{path}: {name} is {tensor.dtype}, expected one of {WEIGHT_DTYPES}: save the "
                "adapter in one of them"
            )
        halves[found["half"]] = tensor
    for module, halves in stored.items():
        for half in "AB":
            if half not in halves:
                raise CheckpointError(
                    f"{path} lacks lora_{half} of {module}: the file is incomplete, download it "
                    "again"
                )
    return stored


def check_modules(
    path: Path,
    stored: Mapping[str, object],
    config: AdapterConfig,
    shapes: Mapping[str, tuple[int, int]],
) -> None:
    """Raise CheckpointError unless the file has exactly the modules that its config names, all
    of them in the base."""
    strangers = sorted(stored.keys() - shapes.keys()) or config.unknown_targets(shapes)
    if strangers:
        raise CheckpointError(
            f"{path} changes {shown(strangers[0])}, which the base does not have: give the base "
            f"that the adapter was trained on ({config.base or 'its config does not say which'})"
        )
    targets = {module for module in shapes if config.has_target(module)}
    if lacking := sorted(targets - stored.keys()):
        raise CheckpointError(
            f"{path} lacks {lacking[0]}, which target_modules in {ADAPTER_CONFIG} names: the "
            "adapter is incomplete or for a smaller base; download it again, or give its own base"
        )
    if extra := sorted(stored.keys() - targets):
        raise CheckpointError(
            f"{path} has {extra[0]}, which target_modules in {ADAPTER_CONFIG} leaves out: the "
            "two files are of different adapters; download both again"
        )


def check_shapes(
    path: Path,
    module: str,
    halves: Mapping[str, StoredTensor],
    rank: int,
    shape: tuple[int, int],
) -> None:
    rows, cols = shape
    for half, want in (("A", (rank, cols)), ("B", (rows, rank))):
        if halves[half].shape != want:
            raise CheckpointError(
                f"{path}: {halves[half].name} has the shape {list(halves[half].shape)}, expected "
                f"{list(want)} for rank {rank} and the base's {module} {list(shape)}: give the "
                "base that the adapter was trained on, or download the adapter again"
            )


def check_copies(file: MappedFile, names: Sequence[str], base: Source) -> None:
    """Raise UnsupportedModelError unless these tensors are copies of the base's."""
    known = {spec.name for spec in base.architecture.tensors()}
    for name in names:
        found = COPY.fullmatch(name)
        original = f"{found['module']}.weight" if found else ""
        if original not in known or not is_copy(file.tensor(name), base.weight(original)):
            raise UnsupportedModelError(
                f"{file.path}: {name} is neither a LoRA matrix nor a copy of the base's weights "
                "(embeddings that were trained or resized, or modules_to_save, look like this): "
                f"{REMEDY}"
            )


def is_copy(copy: Tensor, original: Tensor) -> bool:
    """Whether a tensor has the values of another one, in whatever precision it was stored."""
    return copy.shape == original.shape and all(
        torch.equal(piece, other.to(piece.dtype))
        for piece, other in zip(torch.split(copy, 1024), torch.split(original, 1024), strict=True)
    )


def check_finite(path: Path, adapter: Adapter) -> None:
    for module in sorted(adapter.modules):
        for half, tensor in zip("AB", adapter.factors(module)[:2], strict=True):
            if not all_finite(tensor):
                raise CheckpointError(
                    f"{path}: lora_{half} of {module} has values that are not finite: download "
                    "the adapter again; if that does not help, its training diverged"
                )


def check_tokenizer(adapter: Adapter) -> None:
    names = [path.name for path in adapter.tokenizer_files()]
    if any(name in VOCABULARIES for name in names) or set(names) <= set(CHAT_TEMPLATES):
        return
    raise CheckpointError(
        f"{adapter.folder} has {names[0]} but no tokenizer, expected one of "
        f"{', '.join(VOCABULARIES)}: add the missing file, or remove the adapter's other "
        "tokenizer files to use the base's tokenizer"
    )
