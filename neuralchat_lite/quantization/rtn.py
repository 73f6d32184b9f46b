"""Round to nearest: the largest weight of a group sets its scale.

A weight becomes `scale * (code - zero)`, or `scale * code + minimum` with scheme "affine". The
scale and the minimum are rounded to the dtype in which they are stored before the codes are
computed, so the codes are the nearest ones for what a kernel reads.
Rows are processed a few at a time, so that temporaries stay in the CPU's cache and a matrix of any
size fits into memory. `packed_rtn` gives the same bits in one native pass. The PyTorch code is its
oracle, and handles what it does not: weights that are not finite, and extreme scales.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neuralchat_lite.checkpoints.finite import not_finite
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.kernels import native
from neuralchat_lite.kernels.layout import (
    ROW_TILE,
    SCALE_DTYPES,
    SYMMETRIC_ZERO,
    group_count,
    pack_codes,
    pack_groups,
)
from neuralchat_lite.quantization.levels import LEVELS
from neuralchat_lite.quantization.quantizer import PackedSlab

VERSION = 1  # increased whenever the same weights get other codes
SLAB_WEIGHTS = 1 << 18  # 1 MB of fp32: larger slabs fall out of the second-level cache
NATIVE_SLAB_WEIGHTS = 1 << 21  # 4 MB of bf16: enough row tiles for every thread
NEGLIGIBLE = 2.0**-10  # of a tensor's largest weight: less than the rounding errors of other groups


@dataclass
class QuantizedMatrix:
    """Codes and scales in the order of the weights, before they are packed for the kernels.

    codes:  [rows, cols] int8 (int4: 0..15, int8: -128..127)
    scales: [rows, groups] fp16, bf16 or fp32
    zeros:  [rows, groups] int8, or None unless the scheme is "asym"
    underflows: groups so small that their scale cannot be stored; their weights are all the same
    minima: [rows, groups] in the scales' dtype, or None unless the scheme is "affine"
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    underflows: int = 0
    minima: Tensor | None = None

    def packed(self, stored: str) -> PackedSlab:
        """In the order of kernels; stored: "int4" or "int8"."""
        return PackedSlab(
            pack_codes(self.codes, stored),
            pack_groups(self.scales),
            None if self.zeros is None else pack_groups(self.zeros),
            self.underflows,
            None if self.minima is None else pack_groups(self.minima),
        )


def quantize_rtn(
    weight: Tensor,
    *,
    weight_dtype: str,
    group_size: int,
    scheme: str,
    scale_dtype: str,
    name: str = "weight",
    slab_weights: int = SLAB_WEIGHTS,
) -> QuantizedMatrix:
    """Quantize a [rows, cols] matrix of any float dtype; `name` is for messages.

    Raises CheckpointError when a weight is NaN or infinite, ConfigError when a scale or a minimum
    does not fit scale_dtype.
    """
    slabs = list(
        rtn_slabs(
            weight,
            weight_dtype=weight_dtype,
            group_size=group_size,
            scheme=scheme,
            scale_dtype=scale_dtype,
            name=name,
            slab_weights=slab_weights,
        )
    )
    return joined(slabs)


def joined(slabs: Sequence[QuantizedMatrix]) -> QuantizedMatrix:
    """Pieces of a matrix, from its first row to its last, as one."""
    zeros = [slab.zeros for slab in slabs if slab.zeros is not None]
    minima = [slab.minima for slab in slabs if slab.minima is not None]
    return QuantizedMatrix(
        torch.cat([slab.codes for slab in slabs]),
        torch.cat([slab.scales for slab in slabs]),
        torch.cat(zeros) if zeros else None,
        sum(slab.underflows for slab in slabs),
        torch.cat(minima) if minima else None,
    )


def rtn_slabs(
    weight: Tensor,
    *,
    weight_dtype: str,
    group_size: int,
    scheme: str,
    scale_dtype: str,
    name: str = "weight",
    first: int = 0,
    last: int | None = None,
    slab_weights: int = SLAB_WEIGHTS,
) -> Iterator[QuantizedMatrix]:
    """`quantize_rtn` a few row tiles at a time: the pieces from row `first` up to row `last`.

    slab_weights: about how many weights one piece has
    """
    levels = LEVELS[weight_dtype]
    step = slab_rows(slab_weights, weight.shape[1])

    @functools.cache
    def largest() -> float:  # of the whole tensor; only needed when a scale underflows
        return max(float(part.abs().amax()) for part in torch.split(weight, step))

    for start, slab, grouped in grouped_slabs(weight, group_size, first, last, slab_weights):
        if scheme == "sym":
            reach = spread = grouped.abs().amax(-1)
            wanted = reach / levels.symmetric[2]
        else:
            low, high = grouped.amin(-1), grouped.amax(-1)
            if scheme == "asym":
                low.clamp_(max=0)
                high.clamp_(min=0)
            reach = torch.maximum(high, -low)
            spread = high - low if scheme == "affine" else reach
            wanted = (high - low) / (levels.asymmetric[1] - levels.asymmetric[0])
        if not bool(reach.isfinite().all()):
            raise not_finite(name, slab, start)
        scales, lost = stored_scales(wanted, spread, scale_dtype, name)
        if lost is not None and bool((spread[lost] > NEGLIGIBLE * largest()).any()):
            raise ConfigError(
                f"{name}: a group of weights up to {float(spread[lost].max()):.3g} needs a scale "
                f"below the range of {scale_dtype}; the tensor has weights up to {largest():.3g}: "
                f"use scale_dtype={'fp32' if scale_dtype == 'bf16' else 'bf16'!r}"
            )
        # A lost or empty group has scale 0; dividing by infinity makes its codes zero.
        divisor = scales.float()
        divisor = torch.where(divisor > 0, divisor, torch.inf)
        lowest, highest = levels.asymmetric
        zeros = minima = None
        if scheme == "affine":
            # Adding 0 makes 0 of -0, which is as small as 0.
            minima = stored_minima(low - lowest * scales.float() + 0, scale_dtype, name)
            above = grouped - minima.float().unsqueeze(-1)
            codes = (above / divisor.unsqueeze(-1)).round_().clamp_(lowest, highest)
            # Weights that are all the same need no code: it is that of padding.
            same = (scales == 0).unsqueeze(-1)
            codes.masked_fill_(same, SYMMETRIC_ZERO[levels.stored])
        else:
            codes = (grouped / divisor.unsqueeze(-1)).round_()
        if scheme == "asym":
            zeros = (lowest - low / divisor).round_().clamp_(lowest, highest)
            # An empty group gets the symmetric zero, like the padding of a matrix.
            zeros = torch.where(scales > 0, zeros, float(SYMMETRIC_ZERO[levels.stored]))
            codes.add_(zeros.unsqueeze(-1)).clamp_(lowest, highest)
            zeros = zeros.to(torch.int8)
        elif scheme == "sym":
            codes.clamp_(*levels.symmetric[:2]).add_(SYMMETRIC_ZERO[levels.stored])
        codes = codes.to(torch.int8).flatten(1)[:, : slab.shape[1]]
        underflows = 0 if lost is None else int(lost.sum())
        yield QuantizedMatrix(codes, scales, zeros, underflows, minima)


def packed_rtn(
    weight: Tensor,
    *,
    weight_dtype: str,
    group_size: int,
    scheme: str,
    scale_dtype: str,
    name: str = "weight",
    slab_weights: int = NATIVE_SLAB_WEIGHTS,
) -> Iterator[PackedSlab]:
    """`quantize_rtn` with packed results, piece by piece in row order. Raises the same errors."""
    options: dict[str, Any] = {
        "weight_dtype": weight_dtype,
        "group_size": group_size,
        "scheme": scheme,
        "scale_dtype": scale_dtype,
    }
    slabs = functools.partial(rtn_slabs, weight, **options, name=name)
    return packed_slabs(weight, slab_weights, slabs, **options)


def packed_slabs(
    weight: Tensor,
    slab_weights: int,
    slabs: Callable[..., Iterator[QuantizedMatrix]],
    *,
    weight_dtype: str,
    group_size: int,
    scheme: str,
    scale_dtype: str,
    search: bool = False,
) -> Iterator[PackedSlab]:
    """A matrix piece by piece in row order: as the native pass gives it, or, where that gives
    nothing, from `slabs(first=row, last=row)`."""
    rows, cols = weight.shape
    levels = LEVELS[weight_dtype]
    limits = levels.limits(scheme)
    step = slab_rows(slab_weights, cols)
    for first in range(0, rows, step):
        piece = weight[first : first + step].contiguous()
        packed = native.round_to_nearest(
            piece, levels.stored, *limits, group_size, SCALE_DTYPES[scale_dtype], scheme, search
        )
        if packed is not None:
            codes, scales, zeros, minima = packed
            yield PackedSlab(codes, scales, zeros, minima=minima)
            continue
        for slab in slabs(first=first, last=min(first + step, rows)):
            yield slab.packed(levels.stored)


def grouped_slabs(
    weight: Tensor, group_size: int, first: int, last: int | None, slab_weights: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Rows `first` up to `last` a few row tiles at a time: the first row, the weights in fp32
    [rows, cols], and the same [rows, groups, columns of a group].

    A ragged group is filled with its last weight: one that is there already widens no range.
    """
    rows, cols = weight.shape
    groups = group_count(cols, group_size)
    size = cols if group_size == -1 else group_size
    step = slab_rows(slab_weights, cols)
    last = rows if last is None else last
    for start in range(first, last, step):
        slab = weight[start : min(start + step, last)].float()
        filled = torch.cat((slab, slab[:, -1:].expand(-1, groups * size - cols)), dim=1)
        yield start, slab, filled.view(-1, groups, size)


def slab_rows(weights: int, cols: int) -> int:
    """Rows of a piece of about that many weights: whole row tiles."""
    return max(weights // cols // ROW_TILE, 1) * ROW_TILE


def stored_minima(wanted: Tensor, scale_dtype: str, name: str) -> Tensor:
    """Minima [rows, groups] in their stored dtype, rounded to nearest. Raises ConfigError when one
    does not fit it."""
    minima = wanted.to(SCALE_DTYPES[scale_dtype])
    if bool(minima.isinf().any()):
        raise ConfigError(
            f"{name}: a group needs the minimum {float(wanted.abs().max()):.3g}, beyond the range "
            f"of {scale_dtype}: use scale_dtype='bf16' or 'fp32'"
        )
    return minima


def stored_scales(
    wanted: Tensor, reach: Tensor, scale_dtype: str, name: str
) -> tuple[Tensor, Tensor | None]:
    """Scales in their stored dtype, and a mask of those that became 0 (None: none did).

    wanted: [rows, groups] fp32, the exact scales
    reach: the same of the largest weights, or of the ranges that codes are spread over
    """
    dtype = SCALE_DTYPES[scale_dtype]
    info = torch.finfo(dtype)
    scales = wanted.to(dtype)
    if bool(scales.isinf().any()):
        raise ConfigError(
            f"{name}: a group needs the scale {float(wanted.max()):.3g}, above the largest of "
            f"{scale_dtype} ({info.max:.3g}): use scale_dtype='bf16' or 'fp32'"
        )
    subnormal = wanted < info.smallest_normal
    if not bool(subnormal.any()):
        return scales, None
    # Below the normal range steps are coarse. Rounding up keeps every weight within the codes,
    # so the error stays half a step; rounding down would clip up to a third of a weight.
    tiny = info.smallest_normal * info.eps
    scales = torch.where(subnormal, ((wanted.double() / tiny).ceil() * tiny).to(dtype), scales)
    lost = (wanted < tiny) & (reach > 0)
    if not bool(lost.any()):
        return scales, None
    return torch.where(lost, torch.zeros_like(scales), scales), lost
