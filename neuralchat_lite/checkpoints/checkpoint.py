"""A Hugging Face folder of safetensors files, mapped and checked whole before any work."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from neuralchat_lite.checkpoints.foreign import refuse_foreign
from neuralchat_lite.checkpoints.kinds import is_packed
from neuralchat_lite.checkpoints.source import Source, files_identity, read_files
from neuralchat_lite.checkpoints.tensors import refuse_foreign_tensors, without_wrappers
from neuralchat_lite.errors import CheckpointError, UnsupportedModelError
from neuralchat_lite.families.architecture import HEAD, Architecture, Names
from neuralchat_lite.families.config_json import read_architecture
from neuralchat_lite.files.digests import HashProgress
from neuralchat_lite.files.json_file import read_json
from neuralchat_lite.files.names import INDEX, SIDECARS, WEIGHTS
from neuralchat_lite.files.safetensors_file import DTYPES, StoredTensor, read_header

log = logging.getLogger(__name__)

# Beginnings of tensors that stand beside a decoder: TRL's value head, a classifier of texts.
OTHER_HEADS = ("v_head.", "score.", "classifier.", "qa_outputs.")
WEIGHT_DTYPES = ("BF16", "F16", "F32")


class Checkpoint(Source):
    """A folder of safetensors files. Make it with `open_checkpoint`, which checks it.

    folder: where it lies
    files: its safetensors files, sorted by name
    hub: (repository, resolved commit), if it is from there
    wrappers: of training, which the files have in the names of tensors, and which are left out
    """

    def __init__(
        self,
        folder: Path,
        architecture: Architecture,
        files: tuple[Path, ...],
        stored: Mapping[str, tuple[Path, StoredTensor]],
        hub: tuple[str, str] | None = None,
        wrappers: tuple[str, ...] = (),
    ) -> None:
        self.folder: Path = folder
        self.architecture = architecture
        self.files = files
        self.hub = hub
        self.wrappers = wrappers
        self.name = hub[0].rpartition("/")[2] if hub else folder.resolve().name
        self._stored = stored  # by the names of `Architecture.tensors`
        self._mapped = {path: map_file(path) for path in files}

    def weight(self, name: str) -> Tensor:
        """The tensor of this Hugging Face name, a view of the mapped file in the file's dtype.

        "lm_head.weight" is the head in every family; of a tied model it is the embedding.
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
        # What decides the bytes that are written: configuration, tokenizer, weights.
        return files_identity([*self.sidecar_files(), *self.files], self.hub, root, progress)

    def held_bytes(self) -> int:
        return 0  # all of it is mapped

    def holds_twice(self, place: tuple[Path, StoredTensor], name: str) -> bool:
        """Whether what is stored at `place` has the values of the tensor `name`."""
        path, stored = place
        other, mine = self._mapped[path].get_tensor(stored.name), self.weight(name)
        return other.shape == mine.shape and all(
            torch.equal(*pair)
            for pair in zip(torch.split(other, 1024), torch.split(mine, 1024), strict=True)
        )

    def _find(self, name: str) -> tuple[Path, StoredTensor]:
        return self._stored[self.architecture.stored_name(name)]


def map_file(path: Path) -> Any:
    """The safetensors library's view of a file: its tensors lie in the page cache, uncopied."""
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        if "allocate memory" in str(error):  # it cannot be mapped, and is as whole as before
            raise MemoryError(f"{path}: {error}") from None
        raise CheckpointError(
            f"{path} is damaged ({error}): download or copy the file again"
        ) from None
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise
        raise CheckpointError(
            f"{path} cannot be mapped ({error.strerror or error}): check the file, its permissions "
            "and the limit of open files (`ulimit -n`)"
        ) from None


def open_checkpoint(folder: Path | str, hub: tuple[str, str] | None = None) -> Checkpoint:
    """Map a Hugging Face folder: config.json beside model.safetensors, or beside its shards.

    hub: (repository, resolved commit), if it is from there

    Raises CheckpointError when a file or tensor is missing, cut short or of the wrong shape,
    UnsupportedModelError when the model is whole but not of Llama's kind or not in bf16, fp16 or
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
    refuse_foreign(folder)
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
                f"{folder / file} lacks {name}, which model.safetensors.index.json promises: "
                "download the checkpoint again"
            )
    found, wrappers = without_wrappers(found, folder)
    refuse_foreign_tensors(found, architecture.names.base, folder)
    matched = match(architecture, found, folder)
    checkpoint = Checkpoint(folder, architecture, files, matched, hub, wrappers)
    head = architecture.untied_head_name
    if (
        architecture.tied
        and head in found
        and found[head] != matched[architecture.embedding_name]
        and not checkpoint.holds_twice(found[head], HEAD)
    ):
        raise CheckpointError(
            f"{folder}: config.json says tie_word_embeddings, but {head} is stored and differs "
            'from the embedding: say "tie_word_embeddings": false there to use it'
        )
    return checkpoint


def find_files(folder: Path) -> tuple[tuple[Path, ...], dict[str, str]]:
    """The safetensors files of a folder, and the index's promise: tensor name -> file name."""
    index = folder / INDEX
    single = folder / WEIGHTS
    if single.exists():
        return (single,), {}
    if not index.exists():
        raise CheckpointError(
            f"{folder} has neither model.safetensors nor model.safetensors.index.json: "
            "download the weights too"
        )
    promised = read_json(index).get("weight_map")
    if not isinstance(promised, dict) or not promised:
        raise CheckpointError(f"{index} has no weight_map: download it again")
    names = sorted(set(map(str, promised.values())))
    for name in names:
        if Path(name).name != name:  # an index may not point out of its folder
            raise CheckpointError(f"{index} names {name!r}: expected a file name without folders")
        if not (folder / name).exists():
            raise CheckpointError(
                f"{folder / name} is missing, one of the {len(names)} shards that {index.name} "
                "names: download it"
            )
    return tuple(folder / name for name in names), promised


def match(
    architecture: Architecture, found: Mapping[str, tuple[Path, StoredTensor]], folder: Path
) -> dict[str, tuple[Path, StoredTensor]]:
    """Each tensor that the architecture needs, found in the files under its own name or the
    name that a model without a head gives it, with the shape that config.json promises."""
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
        if spec.name not in found:
            raise CheckpointError(
                f"{folder} lacks the tensor {spec.name} {list(spec.shape)} ({spec.role}): "
                "config.json and weights do not belong together, or a file is missing"
            )
        path, stored = matched[spec.name] = found[spec.name]
        if stored.shape != spec.shape:
            raise CheckpointError(
                f"{path}: {spec.name} has the shape {list(stored.shape)}, but config.json "
                f"promises {list(spec.shape)}: they do not belong together"
            )
        if stored.dtype not in WEIGHT_DTYPES:
            raise UnsupportedModelError(
                f"{path}: {spec.name} is {stored.dtype}, expected one of {WEIGHT_DTYPES}: "
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
            f"use, such as {extra[0]}: running without them would give wrong results"
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
