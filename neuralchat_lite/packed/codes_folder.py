"""Writing a Hugging Face folder with codes in somebody's format, as they are.

A format says how the codes of one matrix become tensors, and what config.json says of them. All
linear layers have one setting in it. Norms, biases and matrices without codes are written as they
are stored; an embedding of codes in fp32, which holds its weights exactly.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuralchat_lite.checkpoints.source import Source
from neuralchat_lite.checkpoints.stored_codes import KEYS
from neuralchat_lite.checkpoints.tokenizer import Tokenizer
from neuralchat_lite.checkpoints.write import TENSOR_NAMES, write_folder
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.families.architecture import HEAD, TensorSpec
from neuralchat_lite.files.folder import require_empty
from neuralchat_lite.files.progress import ProgressCallback
from neuralchat_lite.files.safetensors_file import StoredTensor
from neuralchat_lite.kernels.layout import (
    SYMMETRIC_ZERO,
    PackedMatrix,
    dequantize,
    unpack_codes,
    unpack_groups,
)
from neuralchat_lite.packed.foreign import KEY
from neuralchat_lite.packed.format import PackedModel
from neuralchat_lite.packed.gguf import value_of
from neuralchat_lite.quantization.levels import BITS

HELD = ("sym", "asym")
BYTES_A_WEIGHT = 16  # while a matrix is packed
QUANTIZE = "quantize the original checkpoint with scheme='sym' or scheme='asym'"


@dataclass(frozen=True)
class Setting:
    """What all matrices of codes have. group_size: -1 for a whole row."""

    weight_dtype: str
    group_size: int
    scheme: str

    @property
    def bits(self) -> int:
        return BITS[self.weight_dtype]

    @property
    def symmetric(self) -> bool:
        return self.scheme == "sym"

    def __str__(self) -> str:
        groups = "whole rows" if self.group_size == -1 else f"groups of {self.group_size}"
        return f"{self.weight_dtype}, {self.scheme}, in {groups}"


@dataclass(frozen=True)
class Levels:
    """The codes of a matrix, from 0 to 2 ** bits - 1: a weight is scale * (level - zero).

    levels: [rows, cols] uint8
    scales: [rows, groups]
    zeros: [rows, groups] uint8, also where they all are in the middle
    """

    levels: Tensor
    scales: Tensor
    zeros: Tensor


@dataclass(frozen=True)
class Format:
    """A format.

    name: for people
    parts: the tensors of a matrix, by the ends of their names; also of tensors without data, whose
        shapes are planned with
    said: quantization_config in config.json. It is given the setting, the full names of linear
        layers without codes, and whether the head has codes
    check: raises ConfigError for a matrix, by its name and shape, that has no place in it
    """

    name: str
    parts: Callable[[Levels, Setting], dict[str, Tensor]]
    said: Callable[[Setting, list[str], bool], dict[str, Any]]
    check: Callable[[str, tuple[int, ...], Setting], None]

    def __call__(
        self,
        model: Source | PackedModel,
        tokenizer: Tokenizer,
        sidecars: Mapping[str, bytes],
        out: Path,
        kind: str | None = None,
        *,
        progress: ProgressCallback | None = None,
    ) -> Path:
        """See `export.export_model`. The tokenizer is among the sidecars."""
        return export_codes(model, sidecars, out, self, progress)


def packed_words(levels: Tensor, bits: int) -> Tensor:
    """[rows, n] levels -> [rows, n * bits / 32] int32; the first one is in the lowest bits."""
    count = 32 // bits
    places = torch.arange(count, dtype=torch.int32, device=levels.device) * bits
    parts = levels.to(torch.int32).reshape(len(levels), -1, count) << places
    return parts.sum(-1, dtype=torch.int32)  # the highest bit becomes the sign


def levels_of(matrix: PackedMatrix) -> Levels:
    offset = (1 << (BITS[matrix.weight_dtype] - 1)) - SYMMETRIC_ZERO[matrix.weight_dtype]
    codes = unpack_codes(matrix.codes, matrix.weight_dtype, matrix.rows, matrix.cols)
    scales = unpack_groups(matrix.scales, matrix.rows)
    if matrix.zeros is None:
        zeros = torch.full(scales.shape, SYMMETRIC_ZERO[matrix.weight_dtype])
    else:
        zeros = unpack_groups(matrix.zeros, matrix.rows)
    whole = (codes.to(torch.int16) + offset).to(torch.uint8)
    return Levels(whole, scales.contiguous(), (zeros.to(torch.int16) + offset).to(torch.uint8))


def shapes_of(matrix: PackedMatrix) -> Levels:
    """As `levels_of`, without data."""
    groups = matrix.scales.shape[1]
    small = torch.empty((matrix.rows, groups), dtype=torch.uint8, device="meta")
    levels = torch.empty((matrix.rows, matrix.cols), dtype=torch.uint8, device="meta")
    return Levels(levels, small.to(matrix.scales.dtype), small)


def export_codes(
    model: Source | PackedModel,
    sidecars: Mapping[str, bytes],
    out: Path,
    form: Format,
    progress: ProgressCallback | None,
) -> Path:
    """Write the folder `out`, whole or not at all.

    Raises ConfigError for a model without codes, and for codes that the format cannot hold;
    CacheError when the folder cannot be written.
    """
    require_empty(out)
    specs = list(written(model))
    setting = common_setting(model, specs, form)
    planned: list[StoredTensor] = []
    owner: dict[str, str] = {}  # tensor -> its matrix
    kept: list[str] = []
    coded: list[str] = []
    for spec in specs:
        value = value_of(model, name_of(spec))
        if spec.is_matrix:
            (coded if isinstance(value, PackedMatrix) else kept).append(stored_module(spec))
        for name, tensor in parts_of(spec, value, form, setting, data=False).items():
            planned.append(StoredTensor(name, TENSOR_NAMES[tensor.dtype], tuple(tensor.shape)))
            owner[name] = spec.name
    by_name = {spec.name: spec for spec in specs}
    ready: dict[str, Tensor] = {}

    def pieces(name: str) -> Iterator[Tensor]:
        if name not in ready:
            spec = by_name[owner[name]]
            value = value_of(model, name_of(spec))
            ready.update(parts_of(spec, value, form, setting, data=True))
        yield ready.pop(name).contiguous()

    config = json.loads(sidecars["config.json"])
    for key in (KEY, *KEYS):
        config.pop(key, None)
    head = model.architecture.untied_head_name.removesuffix(".weight")
    unquantized = [*kept, head] if model.architecture.tied else kept
    config["quantization_config"] = form.said(setting, unquantized, head in coded)
    files = {**sidecars, "config.json": (json.dumps(config, indent=2) + "\n").encode()}
    largest = max(spec.shape[0] * spec.shape[1] for spec in specs if len(spec.shape) == 2)
    return write_folder(
        out,
        files,
        planned,
        pieces,
        held_bytes=BYTES_A_WEIGHT * largest,
        stage="export",
        progress=progress,
        check=(lambda: None) if isinstance(model, PackedModel) else model.require_unchanged,
    )


def written(model: Source | PackedModel) -> Iterator[TensorSpec]:
    """The tensors that are written. Readers take a tied head from the embedding."""
    for spec in model.architecture.tensors():
        if not (spec.role == "lm_head" and model.architecture.tied):
            yield spec


def name_of(spec: TensorSpec) -> str:
    return HEAD if spec.role == "lm_head" else spec.name


def stored_module(spec: TensorSpec) -> str:
    """The full name of a module as the folder has it."""
    return spec.name.removesuffix(".weight")


def parts_of(
    spec: TensorSpec,
    value: PackedMatrix | Tensor,
    form: Format,
    setting: Setting,
    *,
    data: bool,
) -> dict[str, Tensor]:
    """The tensors that hold one of ours, by their full names."""
    if not isinstance(value, PackedMatrix):
        return {spec.name: value}
    if spec.role == "embedding":
        shape = torch.empty(spec.shape, dtype=torch.float32, device="meta")
        return {spec.name: dequantize(value) if data else shape}
    parts = form.parts(levels_of(value) if data else shapes_of(value), setting)
    module = stored_module(spec)
    return {f"{module}.{part}": tensor for part, tensor in parts.items()}


def common_setting(model: Source | PackedModel, specs: list[TensorSpec], form: Format) -> Setting:
    """The setting of all matrices of codes. Raises ConfigError where there is none."""
    found: dict[Setting, list[TensorSpec]] = {}
    for spec in specs:
        value = value_of(model, name_of(spec)) if spec.is_matrix else None
        if not isinstance(value, PackedMatrix):
            continue
        setting = Setting(value.weight_dtype, value.group_size, value.scheme)
        if setting.scheme not in HELD:
            raise ConfigError(
                f"{spec.module} is {setting}, with a minimum for each group, which {form.name} "
                f"has no place for: {QUANTIZE}, or export a GGUF file"
            )
        if setting.group_size != -1 and value.cols % setting.group_size:
            raise ConfigError(
                f"{spec.module} has {value.cols} columns, which {form.name} does not cut into "
                f"groups of {setting.group_size}: quantize the original checkpoint with a "
                "group_size that divides it, or -1"
            )
        found.setdefault(setting, []).append(spec)
    if not found:
        raise ConfigError(
            f"{form.name} is written from codes, and this model has none: quantize it first, with "
            "scheme='sym' or scheme='asym', and export that folder"
        )
    if len(found) > 1:
        (one, (first, *_)), (other, (second, *_)), *_ = found.items()
        remedy = "quantize the original checkpoint with lm_head={!r} or, without codes of the "
        remedy += "head, with modules_to_not_convert=['lm_head']"
        if second.role != "lm_head" or len(found) > 2:
            remedy = "quantize the original checkpoint without overrides"
        raise ConfigError(
            f"{first.module} is {one}, and {second.module} is {other}, but {form.name} has one "
            f"setting for all layers: {remedy.format(one.weight_dtype)}"
        )
    [(setting, matrices)] = found.items()
    for spec in matrices:
        form.check(spec.module, spec.shape, setting)
    return setting
