"""A matrix that an algorithm is to quantize, and how its results become stored codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.kernels.layout import MINIMUM_STEPS, SCALE_DTYPES, SYMMETRIC_ZERO
from neuralchat_lite.quantization import rtn, search
from neuralchat_lite.quantization.levels import BITS, LEVELS
from neuralchat_lite.quantization.rtn import QuantizedMatrix
from neuralchat_lite.quantization.schemes import WITH_MINIMA
from neuralchat_lite.quantization.settings import MatrixSettings


@dataclass(frozen=True)
class Target:
    """name: of its module relative to the block; module: its full name
    stored: its weight type in kernels/layout.py
    """

    name: str
    module: str
    stored: str
    group_size: int
    scheme: str
    scale_dtype: str

    @classmethod
    def of(cls, name: str, module: str, settings: MatrixSettings) -> Target:
        stored = LEVELS[settings.weight_dtype].stored
        return cls(name, module, stored, settings.group_size, settings.scheme, settings.scale_dtype)

    @property
    def bits(self) -> int:
        return BITS[self.stored]

    @property
    def symmetric(self) -> bool:
        return self.scheme == "sym"

    @property
    def has_minima(self) -> bool:
        return self.scheme in WITH_MINIMA

    @property
    def integer_scheme(self) -> str:
        """What a package that has no minima is told."""
        return "asym" if self.has_minima else self.scheme

    @property
    def torch_scale_dtype(self) -> torch.dtype:
        return SCALE_DTYPES[self.scale_dtype]

    def matrix(self, levels: Tensor, scales: Tensor, zeros: Tensor | None) -> QuantizedMatrix:
        """The matrix of an algorithm's results.

        levels, zeros: [rows, cols], [rows, groups], from 0 to 2 ** bits - 1; symmetric matrices
            have their zero in the middle; with minima, zeros are what `zeros_of` gives
        scales: [rows, groups]
        Raises ConfigError for scales that scale_dtype cannot hold.
        """
        offset = self.offset
        stored = scales.to(self.torch_scale_dtype)
        if not bool(stored.isfinite().all()):
            raise ConfigError(
                f"{self.module}: a group needs the scale {float(scales.abs().max()):.3g}, which "
                f"{self.scale_dtype} does not hold: use scale_dtype='bf16' or 'fp32'"
            )
        codes = (levels.round() + offset).to(torch.int8)
        found = None
        if self.has_minima:
            assert zeros is not None, f"{self.module} has no zeros"
            if self.scheme == "affine":
                minima = self.minima_of(zeros, scales)
            else:
                minima = ((SYMMETRIC_ZERO[self.stored] - zeros) * MINIMUM_STEPS).to(torch.int8)
            return QuantizedMatrix(codes, stored, None, minima=minima)
        if not self.symmetric:
            assert zeros is not None, f"{self.module} has no zeros"
            found = (zeros.round() + offset).to(torch.int8)
        return QuantizedMatrix(codes, stored, found)

    @property
    def offset(self) -> int:
        """Of codes from levels: int8 codes are signed."""
        return SYMMETRIC_ZERO[self.stored] - (1 << (self.bits - 1))

    def minima_of(self, zeros: Tensor, scales: Tensor) -> Tensor:
        """Minima as they are stored. Raises ConfigError for some that scale_dtype cannot hold."""
        return rtn.stored_minima(-(zeros + self.offset) * scales, self.scale_dtype, self.module)

    def zeros_of(self, minima: Tensor, scales: Tensor) -> Tensor:
        """The level that stands for zero, no whole number, from stored minima."""
        return -minima.float() / scales - self.offset

    def with_minima(self, weight: Tensor) -> QuantizedMatrix:
        """[rows, cols] weights rounded to nearest, with the minima that the scheme asks for. In 4
        bits scales and minima are searched for."""
        options: dict[str, Any] = {
            "group_size": self.group_size,
            "scheme": self.scheme,
            "scale_dtype": self.scale_dtype,
            "name": self.module,
        }
        if self.stored == "int4":
            return search.quantize_search(weight, **options)
        return rtn.quantize_rtn(weight, weight_dtype=self.stored, **options)

    def dequantized(self, matrix: QuantizedMatrix) -> Tensor:
        """[rows, cols] fp32: the weights that the kernels will see."""
        cols = matrix.codes.shape[1]
        group = torch.arange(cols) // (cols if self.group_size == -1 else self.group_size)
        scales = matrix.scales.float()[:, group]
        if matrix.minima is not None:
            minima = matrix.minima.float()[:, group]
            if self.scheme == "affine8":
                minima = scales * (minima / MINIMUM_STEPS - SYMMETRIC_ZERO[self.stored])
            return scales * matrix.codes.float() + minima
        if matrix.zeros is None:
            return scales * (matrix.codes.float() - SYMMETRIC_ZERO[self.stored])
        return scales * (matrix.codes.float() - matrix.zeros.float()[:, group])
