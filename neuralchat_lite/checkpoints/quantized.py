"""A checkpoint that others quantized, as a source: its codes go into our layout as they are.

`weight` gives the dequantized matrix in fp32, for running without codes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from neuralchat_lite.checkpoints.checkpoint import Checkpoint
from neuralchat_lite.checkpoints.stored_codes import (
    ORDERS,
    Codes,
    Layout,
    in_other_order,
    without_layout,
)
from neuralchat_lite.errors import CheckpointError, ConfigError
from neuralchat_lite.families.architecture import HEAD, TensorSpec
from neuralchat_lite.files.mapped import MappedFile
from neuralchat_lite.files.safetensors_file import StoredTensor
from neuralchat_lite.kernels.layout import (
    SCALE_DTYPES,
    SYMMETRIC_ZERO,
    PackedMatrix,
    dequantize,
    group_count,
    pack_codes,
    pack_groups,
)

Place = tuple[MappedFile, StoredTensor]
SCALES = ("scales", "weight_scale")
BYTES_A_WEIGHT = 8  # while a matrix is repacked


class QuantizedCheckpoint(Checkpoint):
    """A folder whose matrices are stored as codes. `open_checkpoint` makes it.

    layout: how they are stored
    parts: tensor name of a matrix -> the tensors that hold it, by the ends of their names
    """

    def __init__(
        self, *whole: Any, layout: Layout, parts: Mapping[str, Mapping[str, Place]]
    ) -> None:
        super().__init__(*whole)
        self.layout = layout
        self.parts = parts

    def packed(self, name: str) -> PackedMatrix | None:
        parts = self.parts.get(self.architecture.stored_name(name))
        if parts is None or self.reordered is not None:
            return None
        return self.matrix(name, self.codes(parts))

    def codes(self, parts: Mapping[str, Place]) -> Codes:
        tensors = {ending: file.tensor(stored.name) for ending, (file, stored) in parts.items()}
        return self.layout.read(tensors, self.layout)

    def matrix(self, name: str, codes: Codes) -> PackedMatrix:
        """Codes that are in order, packed. Raises CheckpointError when they contradict
        config.json."""
        layout, spec = self.layout, self.spec(name)
        stored = layout.weight_dtype
        rows, cols = spec.shape
        middle = 1 << (layout.bits - 1)
        offset = SYMMETRIC_ZERO[stored] - middle
        shapes = tuple(codes.levels.shape), tuple(codes.scales.shape)
        wanted = (rows, cols), (rows, group_count(cols, layout.group_size))
        if shapes != wanted or (codes.zeros is not None and codes.zeros.shape != wanted[1]):
            raise CheckpointError(
                f"{self.folder}: {name} has codes {list(shapes[0])} and scales {list(shapes[1])}, "
                f"but config.json implies {list(wanted[0])} and {list(wanted[1])}: download the "
                "model again"
            )
        zeros = None
        if layout.symmetric:
            if codes.zeros is not None and bool((codes.zeros != middle).any()):
                raise CheckpointError(
                    f"{self.folder}: {name} has zero points, but config.json says that codes are "
                    f"symmetric: download the model again, or set that to false in it"
                )
        else:
            found = codes.zeros
            moved = torch.full(wanted[1], middle) + offset if found is None else found + offset
            if bool((moved > 127).any()):
                raise CheckpointError(
                    f"{self.folder}: {name} has the zero point {int(moved.max()) - offset}, "
                    f"expected {(1 << layout.bits) - 1} at most: download the model again"
                )
            zeros = pack_groups(moved.to(torch.int8))
        levels = (codes.levels.to(torch.int16) + offset).to(torch.int8)
        return PackedMatrix(
            weight_dtype=stored,
            rows=rows,
            cols=cols,
            group_size=layout.group_size,
            codes=pack_codes(levels, stored),
            scales=pack_groups(codes.scales.contiguous()),
            zeros=zeros,
        )

    def weight(self, name: str) -> Tensor:
        parts = self.parts.get(self.architecture.stored_name(name))
        if parts is None:
            return super().weight(name)
        codes = self.codes(parts)
        if codes.groups is None:
            return dequantize(self.matrix(name, codes))
        groups = codes.groups.long()
        middle = 1 << (self.layout.bits - 1)
        zeros = middle if codes.zeros is None else codes.zeros[:, groups].float()
        return codes.scales.float()[:, groups] * (codes.levels.float() - zeros)

    def dtype(self, name: str) -> torch.dtype:
        stored = self.architecture.stored_name(name)
        return torch.float32 if stored in self.parts else super().dtype(name)

    def held_bytes(self) -> int:
        sizes = [spec.shape[0] * spec.shape[1] for spec in self.quantized_specs()]
        return BYTES_A_WEIGHT * max(sizes, default=0)

    def sidecars(self) -> dict[str, bytes]:
        found = super().sidecars()
        plain = without_layout(json.loads(found["config.json"]))
        return {**found, "config.json": (json.dumps(plain, indent=2) + "\n").encode()}

    # ---- the configuration that the codes imply ----

    @cached_property
    def reordered(self) -> str | None:
        """A matrix with groups whose columns are not neighbours, as GPTQ's act-order leaves them;
        None when there is none."""
        for name, parts in self.parts.items():
            for ending in ORDERS & parts.keys():
                file, stored = parts[ending]
                if in_other_order(file.tensor(stored.name), self.layout) is not None:
                    return name
        return None

    def implied_options(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Options of WeightOnlyQuantConfig that take the codes over.

        Raises ConfigError for codes that our layout cannot hold, unless other weights are asked
        for, which are then rounded from the dequantized ones.
        """
        if self.reordered is not None:
            if "weight_dtype" in asked:
                return {}
            raise ConfigError(
                f"{self.name}: the columns of {self.reordered} are grouped in another order "
                f"({self.layout.name} with act-order), and groups here are of neighbours: ask for "
                "weight_dtype='int8', which rounds the dequantized weights again, or for "
                "dtype='bf16'"
            )
        quantized = [spec.module for spec in self.quantized_specs()]
        parts = next(iter(self.parts.values()))
        scales = next(place for ending, place in parts.items() if ending.endswith(SCALES))
        names = {dtype: name for name, dtype in SCALE_DTYPES.items()}
        kept = [
            spec.module
            for spec in self.architecture.tensors()
            if spec.role == "linear" and spec.module not in quantized
        ]
        implied: dict[str, Any] = {
            "weight_dtype": self.layout.weight_dtype,
            "group_size": self.layout.group_size,
            "scheme": "sym" if self.layout.symmetric else "asym",
            "scale_dtype": names[scales[0].tensor(scales[1].name).dtype],
        }
        if kept:
            implied["modules_to_not_convert"] = kept
        if self.architecture.stored_name(HEAD) in self.parts:
            implied["lm_head"] = self.layout.weight_dtype
        return implied

    def quantized_specs(self) -> list[TensorSpec]:
        return [spec for spec in self.architecture.tensors() if spec.name in self.parts]

    def spec(self, name: str) -> TensorSpec:
        stored = self.architecture.stored_name(name)
        return next(spec for spec in self.quantized_specs() if spec.name == stored)
