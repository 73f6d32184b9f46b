"""A Hugging Face folder of safetensors files: mapped, and checked completely before any work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from neuralchat_lite.checkpoints.kinds import is_packed
from neuralchat_lite.checkpoints.source import Source, files_identity, read_files
from neuralchat_lite.errors import CheckpointError, UnsupportedModelError
from neuralchat_lite.families.architecture import HEAD, Architecture
from neuralchat_lite.families.config_json import read_architecture
from neuralchat_lite.files.digests import HashProgress
from neuralchat_lite.files.json_file import read_json
from neuralchat_lite.files.names import INDEX, SIDECARS, WEIGHTS
from neuralchat_lite.files.safetensors_file import DTYPES, StoredTensor, read_header

WEIGHT_DTYPES = ("BF16", "F16", "F32")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class Checkpoint(Source):
    """A folder of safetensors files. Make it with `open_checkpoint`, which checks it.

    folder: its path
    files: its safetensors files, sorted by name
    hub: (repository, resolved commit), if it is from the hub
    """

    def __init__(
        self,
        folder: Path,
        architecture: Architecture,
        files: tuple[Path, ...],
        stored: Mapping[str, tuple[Path, StoredTensor]],
        hub: tuple[str, str] | None = None,
    ) -> None:
        self.folder: Path = folder
        self.architecture = architecture
        self.files = files
        self.hub = hub
        self.name = hub[0].rpartition("/")[2] if hub else folder.resolve().name
        self._stored = stored  # by the names of `Architecture.tensors`
        self._mapped = {path: map_file(path) for path in files}

    def weight(self, name: str) -> Tensor:
        """The tensor of this Hugging Face name, a view of the mapped file in the file's dtype.

        "lm_head.weight" is the head in every family. In a tied model it is the embedding.
        """
        path, stored = self._find(name)
        tensor: Tensor = self._mapped[path].get_tensor(stored.name)
        return tensor

    def dtype(self, name: str) -> torch.dtype:
        return DTYPES[self._find(name)[1].dtype]

    def sidecar_files(self) -> list[Path]:
        return [self.folder / name for name in SIDECARS if (self.folder / name).exists()]

    def sidecars(self) -> dict[str, bytes]:
        return read_files(self.sidecar_files())

    def identity(
        self, root: Path | None = None, progress: HashProgress | None = None
    ) -> dict[str, Any]:
        # The files that decide the bytes that are written: configuration, tokenizer, weights.
        return files_identity([*self.sidecar_files(), *self.files], self.hub, root, progress)

    def held_bytes(self) -> int:
        return 0  # all of it is mapped

    def holds_twice(self, place: tuple[Path, StoredTensor], name: str) -> bool:
        """Whether the tensor stored at `place` equals the tensor `name`."""
        path, stored = place
        other, mine = self._mapped[path].get_tensor(stored.name), self.weight(name)
        return other.shape == mine.shape and all(
            torch.equal(*pair)
            for pair in zip(torch.split(other, 1024), torch.split(mine, 1024), strict=True)
        )

    def _find(self, name: str) -> tuple[Path, StoredTensor]:
        return self._stored[self.architecture.stored_name(name)]


def map_file(path: Path) -> Any:
    """Map a file with the safetensors library. Its tensors are views of the file, not copies."""
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is damaged ({error}): download or copy the file again"
        ) from None


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
    architecture = read_architecture(folder)
    files, promised = find_files(folder)
    found: dict[str, tuple[Path, StoredTensor]] = {}
    for path in files:
        for name, tensor in read_header(path).items():
            if name in found:
                raise CheckpointError(
                    f"{name} is in both {found[name][0].name} and {path.name} of {folder}: "
                    "remove the files that are not part of the model"
                )
            found[name] = (path, tensor)
    for name, file in promised.items():
        if name not in found or found[name][0].name != file:
            raise CheckpointError(
                f"{folder / file} lacks {name}, which model.safetensors.index.json lists: "
                "download the checkpoint again"
            )
    matched = match(architecture, found, folder)
    checkpoint = Checkpoint(folder, architecture, files, matched, hub)
    head = architecture.untied_head_name
    if architecture.tied and head in found and not checkpoint.holds_twice(found[head], HEAD):
        raise CheckpointError(
            f"{folder}: config.json sets tie_word_embeddings, but {head} is stored and differs "
            'from the embedding: set "tie_word_embeddings": false there to use it'
        )
    return checkpoint


def find_files(folder: Path) -> tuple[tuple[Path, ...], dict[str, str]]:
    """The safetensors files of a folder, and the index's map: tensor name -> file name."""
    index = folder / INDEX
    single = folder / WEIGHTS
    if single.exists():
        return (single,), {}
    if not index.exists():
        pickles = sorted(path.name for kind in PICKLES for path in folder.glob(kind))
        if pickles:
            raise CheckpointError(
                f"{folder} has only pickled weights ({pickles[0]}), which can run any code when "
                "read: convert them on a machine where that is acceptable, with transformers' "
                "model.save_pretrained(folder, safe_serialization=True)"
            )
        raise CheckpointError(
            f"{folder} has neither model.safetensors nor model.safetensors.index.json: "
            "download the weights too"
        )
    promised = read_json(index).get("weight_map")
    if not isinstance(promised, dict) or not promised:
        raise CheckpointError(f"{index} has no weight_map: download it again")
    names = sorted(set(map(str, promised.values())))
    for name in names:
        if Path(name).name != name:  # an index must not name files outside its folder
            raise CheckpointError(
                f"{index} names {name!r}: expected a file name without folders: download it again"
            )
        if not (folder / name).exists():
            raise CheckpointError(
                f"{folder / name} is missing, one of the {len(names)} shards that {index.name} "
                "names: download it"
            )
    return tuple(folder / name for name in names), promised


def match(
    architecture: Architecture, found: Mapping[str, tuple[Path, StoredTensor]], folder: Path
) -> dict[str, tuple[Path, StoredTensor]]:
    """Find each tensor that the architecture needs, and check its shape and dtype. A model that was
    saved without a head stores the tensors without the prefix of their names."""
    names = architecture.names
    if not any(name.startswith(names.base) for name in found):
        head = f"{names.head}."
        found = {
            name if name.startswith(head) else names.base + name: found[name] for name in found
        }
    matched = {}
    for spec in architecture.tensors():
        if spec.name not in found:
            raise CheckpointError(
                f"{folder} lacks the tensor {spec.name} {list(spec.shape)} ({spec.role}): "
                "config.json is of another model, or a file is missing; download the model again"
            )
        path, stored = matched[spec.name] = found[spec.name]
        if stored.shape != spec.shape:
            raise CheckpointError(
                f"{path}: {spec.name} has the shape {list(stored.shape)}, but config.json "
                f"implies {list(spec.shape)}: config.json is of another model; download both again"
            )
        if stored.dtype not in WEIGHT_DTYPES:
            raise UnsupportedModelError(
                f"{path}: {spec.name} is {stored.dtype}, expected one of {WEIGHT_DTYPES}: "
                "use the original bf16, fp16 or fp32 checkpoint"
            )
    extra = sorted(
        name
        for name in found.keys() - matched.keys()
        if not name.endswith(names.ignored)
        and not (architecture.tied and name == architecture.untied_head_name)
    )
    if extra:
        raise UnsupportedModelError(
            f"{folder} has {len(extra)} tensors that a {architecture.model_type} decoder does not "
            f"use, such as {extra[0]}: without them, results would be wrong; use another model"
        )
    return matched
