"""A GGUF file as a `Source`: its codes go into our layout as they are."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralchat_lite.checkpoints.gguf.blocks import (
    BLOCK_TYPES,
    FLOAT_TYPES,
    GROUP,
    Codes,
    Setting,
    convert,
    weights,
)
from neuralchat_lite.checkpoints.gguf.header import GGUFFile, GGUFTensor
from neuralchat_lite.checkpoints.gguf.metadata import config_of, kind_of
from neuralchat_lite.checkpoints.gguf.names import (
    ROPE_FACTORS,
    gguf_name,
    reordered,
    rotated_heads,
    row_order,
)
from neuralchat_lite.checkpoints.gguf.values import Metadata
from neuralchat_lite.checkpoints.gguf.vocabulary import read_vocabulary, tokenizer_files
from neuralchat_lite.checkpoints.source import Source, files_identity
from neuralchat_lite.errors import CheckpointError, UnsupportedModelError
from neuralchat_lite.families.architecture import (
    HEAD,
    HEAD_MODULE,
    Architecture,
    TensorSpec,
)
from neuralchat_lite.families.config_json import parse_architecture
from neuralchat_lite.files.digests import HashProgress
from neuralchat_lite.kernels.layout import PackedMatrix, pack_codes, pack_groups

log = logging.getLogger(__name__)

# What this module makes of the same file: another number gives another entry in the cache.
READER = 1
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class GGUFSource(Source):
    """A GGUF file. Make it with `open_gguf`, which checks it.

    folder: None, as the tokenizer is in the file too; `sidecars` has what a folder would
    """

    def __init__(
        self,
        file: GGUFFile,
        architecture: Architecture,
        interleaved: bool,
        beside: dict[str, bytes],
        hub: tuple[str, str] | None = None,
    ) -> None:
        self.file = file
        self.architecture = architecture
        self.interleaved = interleaved
        self.beside = beside
        self.hub = hub
        self.name = file.path.stem
        self._losses: dict[str, float] = {}

    def tensor_of(self, name: str) -> GGUFTensor:
        return self.file.tensors[gguf_name(self.architecture.stored_name(name))]

    def heads_of(self, name: str) -> int | None:
        return rotated_heads(name, self.architecture) if self.interleaved else None

    def weight(self, name: str) -> Tensor:
        """Floats as they are stored; of a matrix of codes the weights in fp32, computed anew."""
        tensor, heads = self.tensor_of(name), self.heads_of(name)
        raw = self.file.raw(tensor)
        if tensor.type not in FLOATS:
            return torch.from_numpy(weights(reordered(raw, heads), tensor.type))
        # Copied, as the mapped file cannot be written and torch has no tensors of that kind.
        found = torch.from_numpy(raw.copy()).view(FLOATS[tensor.type]).view(tensor.shape)
        return found if heads is None else found[torch.from_numpy(row_order(len(found), heads))]

    def dtype(self, name: str) -> torch.dtype:
        return FLOATS.get(self.tensor_of(name).type, torch.float32)

    def setting(self, name: str) -> Setting | None:
        """How the codes of a matrix are stored; None where it is in floats."""
        found = BLOCK_TYPES.get(self.tensor_of(name).type)
        return None if found is None else found.setting

    def codes(self, name: str) -> Codes:
        """A matrix of codes, its rows in Hugging Face's order."""
        tensor = self.tensor_of(name)
        found = convert(reordered(self.file.raw(tensor), self.heads_of(name)), tensor.type)
        for values in (found.scales, found.minima):
            if values is not None and not np.isfinite(values).all():
                raise CheckpointError(
                    f"{self.file.path}: {tensor.name} has a scale that is not finite: download "
                    "the file again"
                )
        if found.error is not None and found.error[0]:
            is_head = name in (HEAD, self.architecture.stored_name(HEAD))
            module = HEAD_MODULE if is_head else name.removesuffix(".weight")
            self._losses[module] = found.error[0] / found.error[1]
        return found

    def packed(self, name: str) -> PackedMatrix | None:
        setting = self.setting(name)
        if setting is None:
            return None
        found = self.codes(name)
        codes = torch.from_numpy(found.codes)
        scales = pack_groups(torch.from_numpy(found.scales))
        minima = None if found.minima is None else pack_groups(torch.from_numpy(found.minima))
        rows, cols = codes.shape
        return PackedMatrix(
            weight_dtype=setting.weight_dtype,
            rows=rows,
            cols=cols,
            group_size=GROUP,
            codes=pack_codes(codes, setting.weight_dtype),
            scales=scales,
            zeros=None,
            minima=minima,
        )

    def implied_options(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a WeightOnlyQuantConfig that the file's codes have; empty where all
        matrices are floats. What is in floats beside codes stays as it is."""
        specs = {spec.module: spec for spec in self.architecture.tensors() if spec.is_matrix}
        found = {module: self.setting(spec.name) for module, spec in specs.items()}
        settings = Counter(setting for setting in found.values() if setting is not None)
        if not settings:
            return {}
        common = settings.most_common(1)[0][0]
        others = {
            module: options_of(setting)
            for module, setting in found.items()
            if setting not in (None, common)
        }
        # The head has an option of its own, whose default is int8.
        head = found.get("lm_head")
        if head == common:
            others["lm_head"] = options_of(common)
        # An override with its full name keeps the codes of the embedding. In a tied model they are
        # the head's, so both have one setting and are stored once.
        table = self.setting(self.architecture.embedding_name)
        if table is not None:
            others[self.architecture.embedding_name.removesuffix(".weight")] = options_of(table)
        kept = [module for module, setting in found.items() if setting is None]
        return {**options_of(common), "overrides": others, "modules_to_not_convert": kept}

    def losses(self) -> dict[str, float]:
        return dict(self._losses)

    def identity(
        self, root: Path | None = None, progress: HashProgress | None = None
    ) -> dict[str, Any]:
        return {**files_identity([self.file], self.hub, root, progress), "gguf_reader": READER}

    def held_bytes(self) -> int:
        """A matrix as codes, twice, and its scales; an embedding in fp32 where it alone has codes,
        as all is quantized then."""
        sizes = [
            8 * size_of(spec) if spec.role == "embedding" else 4 * size_of(spec)
            for spec in self.architecture.tensors()
            if len(spec.shape) == 2 and self.setting(spec.name) is not None
        ]
        return max(sizes, default=0)

    def sidecars(self) -> dict[str, bytes]:
        return self.beside

    def require_unchanged(self) -> None:
        self.file.require_unchanged()


def size_of(spec: TensorSpec) -> int:
    return spec.shape[0] * spec.shape[1]


def options_of(setting: Setting) -> dict[str, Any]:
    return {**setting._asdict(), "group_size": GROUP}


def open_gguf(path: Path | str, hub: tuple[str, str] | None = None) -> GGUFSource:
    """Map a GGUF file, and check it completely.

    Raises CheckpointError when it is damaged, UnsupportedModelError for an architecture, a
    tokenizer or a type of tensors that is not supported, by its name.
    """
    file = GGUFFile(Path(path))
    metadata = Metadata(str(path), file.metadata)
    kind = kind_of(metadata)
    vocabulary = read_vocabulary(metadata)
    config = config_of(metadata, file.tensors, vocabulary, rope_factors(file))
    try:
        architecture = parse_architecture(config)
    except CheckpointError as error:
        raise type(error)(f"{path}: {str(error).replace('config.json: ', '')}") from None
    match(file, architecture)
    beside = {
        "config.json": json.dumps(config, indent=2).encode(),
        **tokenizer_files(vocabulary, architecture.max_positions),
    }
    return GGUFSource(file, architecture, kind.interleaved, beside, hub)


def rope_factors(file: GGUFFile) -> Any:
    tensor = file.tensors.get(ROPE_FACTORS)
    if tensor is None:
        return None
    if tensor.type != "F32":
        raise UnsupportedModelError(
            f"{file.path}: {ROPE_FACTORS} is {tensor.type}, expected F32: use the original "
            "checkpoint"
        )
    return file.raw(tensor).view(np.float32).reshape(-1)


def match(file: GGUFFile, architecture: Architecture) -> None:
    """Check that the file has every tensor, in its shape and a type that is read, and no other."""
    wanted: dict[str, TensorSpec] = {}
    for spec in architecture.tensors():
        name = gguf_name(spec.name)
        wanted[name] = spec
        found = file.tensors.get(name)
        if found is None:
            raise CheckpointError(
                f"{file.path} lacks the tensor {name} {list(spec.shape)} ({spec.role}): download "
                "the file again"
            )
        if found.shape != spec.shape:
            raise CheckpointError(
                f"{file.path}: {name} has the shape {list(found.shape)}, but the metadata implies "
                f"{list(spec.shape)}: download the file again"
            )
        supported = (*FLOAT_TYPES, *(BLOCK_TYPES if len(spec.shape) == 2 else ()))
        if found.type not in supported:
            raise UnsupportedModelError(
                f"{file.path}: {name} is {found.type}, expected one of {', '.join(supported)}: "
                "use a file of another type, or the original checkpoint"
            )
    extra = sorted(file.tensors.keys() - wanted.keys() - {ROPE_FACTORS})
    if extra:
        raise UnsupportedModelError(
            f"{file.path} has {len(extra)} tensors that a {architecture.model_type} decoder does "
            f"not have, such as {extra[0]}: it is a model of another kind"
        )
