"""Writing a GGUF file, from a checkpoint or from the codes of a quantized folder.

The `gguf` package writes it, matrix by matrix. Codes are written as they are, where a type of GGUF
holds them exactly; a checkpoint's weights are quantized by the package.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from neuralchat_lite.checkpoints.gguf.blocks import GROUP, Codes
from neuralchat_lite.checkpoints.gguf.describe import (
    describe_architecture,
    describe_tokenizer,
    rope_factors,
)
from neuralchat_lite.checkpoints.gguf.encode import as_halves, encoded, exact_type
from neuralchat_lite.checkpoints.gguf.metadata import ARCHITECTURES
from neuralchat_lite.checkpoints.gguf.names import (
    ROPE_FACTORS,
    gguf_name,
    rotated_heads,
    row_order,
)
from neuralchat_lite.checkpoints.gguf.types import TYPE_SIZES
from neuralchat_lite.checkpoints.source import Source
from neuralchat_lite.checkpoints.tokenizer import Tokenizer
from neuralchat_lite.errors import CacheError, ConfigError
from neuralchat_lite.families.architecture import HEAD, Architecture, TensorSpec
from neuralchat_lite.files.progress import Progress, ProgressCallback
from neuralchat_lite.kernels.layout import PackedMatrix, dequantize, unpack_codes, unpack_groups
from neuralchat_lite.packed.format import PackedModel

TYPES = ("q8_0", "q4_0", "q4_1")
FLOAT_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
QUANTIZED_AT_ONCE = 1 << 22  # weights
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Written:
    """A tensor of the new file: its name there, type and shape, and where it comes from."""

    name: str
    kind: str
    shape: tuple[int, ...]
    spec: TensorSpec

    @property
    def nbytes(self) -> int:
        values, size = TYPE_SIZES[self.kind]
        return int(np.prod(self.shape)) // values * size


def require_gguf() -> Any:
    """The `gguf` package. Raises ConfigError without it."""
    try:
        return importlib.import_module("gguf")
    except ImportError:
        raise ConfigError(
            "the package gguf is missing, which writes GGUF files: run "
            "`pip install 'neuralchat_lite[gguf]'`"
        ) from None


def export_gguf(
    model: Source | PackedModel,
    tokenizer: Tokenizer,
    sidecars: Mapping[str, bytes],
    out: Path,
    kind: str | None = None,
    *,
    progress: ProgressCallback | None = None,
) -> Path:
    """Write a GGUF file. It gets its name when it is whole.

    tokenizer, sidecars: of the model; "tokenizer.json" must be among the files
    kind: one of TYPES, for a checkpoint (None: "q8_0"); the embedding and the head are Q8_0

    Raises ConfigError for codes that GGUF has no type for, UnsupportedModelError for a model that
    llama.cpp has no words for, CacheError when the file cannot be written.
    """
    gguf = require_gguf()
    asked = checked_kind(model, kind)
    architecture = model.architecture
    name = getattr(model, "name", None) or out.stem
    metadata = describe_architecture(architecture, str(name))
    metadata |= describe_tokenizer(sidecars["tokenizer.json"], tokenizer, architecture, str(name))
    tensors = list(planned(model, asked))
    if out.exists():
        raise CacheError(f"{out} exists already: choose another name, or remove it")
    aside = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        writer = gguf.GGUFWriter(aside, metadata.pop("general.architecture"))
        add_values(writer, metadata)
        factors = rope_factors(architecture)
        if factors is not None:
            writer.add_tensor_info(ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
        for each in tensors:
            writer.add_tensor_info(
                each.name,
                each.shape,
                np.dtype(np.float32),
                each.nbytes,
                raw_dtype=gguf.GGMLQuantizationType[each.kind],
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        total, done = sum(each.nbytes for each in tensors), 0
        for each in tensors:
            writer.write_tensor_data(bytes_of(model, each, gguf))
            done += each.nbytes
            if progress is not None:
                progress(Progress("export", each.name, done, total))
        writer.close()
        aside.replace(out)
    except OSError as error:
        raise CacheError(
            f"{out} cannot be written ({error.strerror}): check the path, permissions and space"
        ) from None
    finally:
        aside.unlink(missing_ok=True)
    return out


def checked_kind(model: Source | PackedModel, kind: str | None) -> str:
    if kind is not None and (isinstance(model, PackedModel) or model.implied_options({})):
        raise ConfigError(
            f"type {kind!r} quantizes a checkpoint, but this model has codes, which are written as "
            "they are: leave the type out, or give the original checkpoint"
        )
    return (kind or "q8_0").upper()


def add_values(writer: Any, metadata: Mapping[str, Any]) -> None:
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_string(key, value)


# ---- tensors ----


def planned(model: Source | PackedModel, kind: str) -> Iterator[Written]:
    """The tensors of the file, in their order. A tied head is left out where the embedding says
    the same."""
    tied, one = model.architecture.tied, embedding_is_head(model)
    for spec in model.architecture.tensors():
        name = gguf_name(spec.name)
        if tied and spec.role == "lm_head":
            if one or not isinstance(value_of(model, HEAD), PackedMatrix):
                continue
            spec, name = replace(spec, name=HEAD), "output.weight"
        elif tied and one and spec.role == "embedding":
            spec = replace(spec, name=HEAD)
        yield Written(name, type_of(model, spec, kind), spec.shape, spec)


def embedding_is_head(model: Source | PackedModel) -> bool:
    """Whether the head of a tied model is the embedding, bit for bit: in a source always, in a
    quantized folder when it was made from a GGUF file."""
    if not isinstance(model, PackedModel):
        return True
    head, embedding = model.weight(HEAD), model.weight(model.architecture.embedding_name)
    if isinstance(embedding, PackedMatrix):  # one matrix, which both are
        return True
    return isinstance(head, PackedMatrix) and torch.equal(dequantize(head), embedding.float())


def value_of(model: Source | PackedModel, name: str) -> PackedMatrix | Tensor:
    if isinstance(model, PackedModel):
        return model.weight(name)
    packed = model.packed(name)
    return model.weight(name) if packed is None else packed


def type_of(model: Source | PackedModel, spec: TensorSpec, kind: str) -> str:
    if len(spec.shape) == 1:
        return "F32"
    value = value_of(model, spec.name)
    if isinstance(value, PackedMatrix):
        return exact_kind(value, spec.name)
    if isinstance(model, PackedModel) or model.implied_options({}) or spec.shape[1] % GROUP:
        return FLOAT_TYPES[value.dtype]
    return kind if spec.role == "linear" else "Q8_0"


def exact_kind(matrix: PackedMatrix, name: str) -> str:
    """The type that holds the codes of a matrix. Raises ConfigError where there is none."""
    scheme = "affine" if matrix.zeros is not None else matrix.scheme
    kind = exact_type(matrix.weight_dtype, scheme)
    if kind is None or matrix.cols % GROUP or codes_of(matrix) is None:
        raise ConfigError(
            f"{name} is {matrix.weight_dtype}, {matrix.scheme}, in groups of {matrix.group_size} "
            f"with scales in {str(matrix.scales.dtype).removeprefix('torch.')}, which no type of "
            f"GGUF holds exactly: export the original checkpoint with one of {', '.join(TYPES)}"
        )
    return kind


def codes_of(matrix: PackedMatrix) -> Codes | None:
    """Codes with scales and minima in fp16, for groups of 32; None where fp16 would change one."""
    codes = unpack_codes(matrix.codes, matrix.weight_dtype, matrix.rows, matrix.cols)
    size = matrix.cols if matrix.group_size == -1 else matrix.group_size
    group = torch.arange(0, matrix.cols, GROUP) // size
    scales = unpack_groups(matrix.scales, matrix.rows).float()[:, group]
    minima = None
    if matrix.minima is not None:
        minima = unpack_groups(matrix.minima, matrix.rows).float()[:, group]
    elif matrix.zeros is not None:
        minima = -scales * unpack_groups(matrix.zeros, matrix.rows).float()[:, group]
    halves = as_halves(scales.numpy())
    least = None if minima is None else as_halves(minima.numpy())
    if halves is None or (minima is not None and least is None):
        return None
    return Codes(np.ascontiguousarray(codes.numpy()), halves, least)


def bytes_of(model: Source | PackedModel, tensor: Written, gguf: Any) -> Bytes:
    architecture, spec = model.architecture, tensor.spec
    value = value_of(model, spec.name)
    order = stored_order(architecture, spec)
    if isinstance(value, PackedMatrix):
        codes = codes_of(value)
        assert codes is not None, "`exact_kind` has seen to it"
        raw = encoded(codes, tensor.kind)
        return np.ascontiguousarray(raw if order is None else raw[order])
    value = value if order is None else value[torch.from_numpy(order)]
    if len(spec.shape) == 1:
        return value.float().contiguous().view(torch.uint8).numpy()
    if tensor.kind in FLOAT_TYPES.values():
        return value.contiguous().view(torch.uint8).numpy()
    step = max(1, QUANTIZED_AT_ONCE // spec.shape[1])
    pieces = [
        gguf.quants.quantize(
            value[first : first + step].float().numpy(), gguf.GGMLQuantizationType[tensor.kind]
        )
        for first in range(0, spec.shape[0], step)
    ]
    return np.concatenate(pieces)


def stored_order(architecture: Architecture, spec: TensorSpec) -> Any:
    """Where each row of the file comes from; None: as they are."""
    written = {kind.model_type for kind in ARCHITECTURES.values() if kind.interleaved}
    if architecture.model_type not in {*written, "mistral"}:
        return None
    heads = rotated_heads(spec.name, architecture)
    return None if heads is None else np.argsort(row_order(spec.shape[0], heads))
