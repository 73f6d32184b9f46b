"""Random packed matrices, and the measure by which products are judged."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from neuralchat_lite.kernels.layout import (
    SCALE_DTYPES,
    PackedMatrix,
    group_count,
    pack_codes,
    pack_groups,
)

CODES = {"int4": (0, 16), "int8": (-128, 128)}


def random_packed(
    rows: int,
    cols: int,
    weight_dtype: str = "int4",
    group_size: int = 32,
    scheme: str = "sym",
    scale_dtype: str = "fp16",
    seed: int = 0,
) -> PackedMatrix:
    """Codes that no quantizer would choose better: every value, at every place."""
    generator = torch.Generator().manual_seed(seed)
    low, high = CODES[weight_dtype]
    codes = torch.randint(low, high, (rows, cols), generator=generator).to(torch.int8)
    groups = group_count(cols, group_size)
    scales = (0.5 + torch.rand((rows, groups), generator=generator)) / 100
    zeros = minima = None
    if scheme == "asym":
        zeros = torch.randint(low, high, (rows, groups), generator=generator).to(torch.int8)
    if scheme == "affine":
        zeros_between = low + (high - low) * torch.rand((rows, groups), generator=generator)
        minima = -scales * zeros_between
    if scheme == "affine8":
        assert weight_dtype == "int4"
        minima = torch.randint(-56, 65, (rows, groups), generator=generator)
    return PackedMatrix(
        weight_dtype,
        rows,
        cols,
        group_size,
        pack_codes(codes, weight_dtype),
        pack_groups(scales.to(SCALE_DTYPES[scale_dtype])),
        None if zeros is None else pack_groups(zeros),
        None
        if minima is None
        else pack_groups(
            minima.to(torch.int8 if scheme == "affine8" else SCALE_DTYPES[scale_dtype])
        ),
    )


@pytest.fixture
def packed() -> Callable[..., PackedMatrix]:
    return random_packed


@pytest.fixture
def sqnr() -> Callable[[Tensor, Tensor], float]:
    """Signal to quantization noise in dB of `got` against `want`."""

    def measure(want: Tensor, got: Tensor) -> float:
        want = want.double()
        noise = (got.double() - want).square().sum()
        return float(10 * torch.log10(want.square().sum() / noise)) if noise else float("inf")

    return measure
