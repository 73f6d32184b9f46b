"""The scale and the zero of each group that have the least squared error, found by trial.

Plain rounding (rtn.py) spreads the levels over the whole range of a group. A narrower range cuts
the largest weights and rounds all others finer. For each of a few ranges the weights are rounded,
and least squares give the best scale and zero for these levels. The best of all is refined, rounded
to what is stored, and taken where its error is smaller than plain rounding's.

The weights of a group are all that is looked at. `importance` is for those who know more: a factor
of each column's squared errors, such as the mean square of its activations.

`packed_search` gives the same bits in one native pass. The PyTorch code is its oracle: sums are in
the order of columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from neuralchat_lite.kernels.layout import (
    MINIMUM_STEPS,
    SCALE_DTYPES,
    group_count,
)
from neuralchat_lite.quantization.quantizer import PackedSlab
from neuralchat_lite.quantization.rtn import (
    NATIVE_SLAB_WEIGHTS,
    SLAB_WEIGHTS,
    QuantizedMatrix,
    grouped_slabs,
    joined,
    packed_slabs,
    rtn_slabs,
)

VERSION = 1  # increased whenever the same weights get other codes
PLAIN = "int4_clip"  # what is rounded plainly first
WIDTHS = (1.02, 0.94, 0.86, 0.78, 0.7)  # of the whole range
SHIFTS = (-0.5, 0.0, 0.5)  # steps that the range is moved by
TOP_LEVELS = (8.75, 8.5, 8.25, 8.0, 7.75, 7.5, 7.25, 7.0)  # where the largest weight goes, if "sym"
REFINEMENTS = 2
NARROW = 2.0**-10  # a range this narrow beside the largest weight is not searched
WHOLE = (-128.0, 119.0)  # zeros, less 8
EIGHTHS = (-127.0, 127.0)


@dataclass
class Fit:
    """A weight is scale * (level - zero), or of a level less 8. All [rows, groups] fp32.

    gain: how much smaller the squared error is than that of the mean, or of nothing
    """

    scale: Tensor
    zero: Tensor
    gain: Tensor

    def take(self, other: Fit, where: Tensor) -> None:
        self.scale = torch.where(where, other.scale, self.scale)
        self.zero = torch.where(where, other.zero, self.zero)
        self.gain = torch.where(where, other.gain, self.gain)

    def is_better_than(self, gain: Tensor | float) -> Tensor:
        """A fit that divides by zero is none."""
        return self.scale.isfinite() & self.zero.isfinite() & (self.gain > gain)


class Groups:
    """Some rows of weights, [size, rows, groups], with a factor of each squared error. Both are
    zero where there is only padding."""

    def __init__(self, weights: Tensor, factors: Tensor) -> None:
        self.weights, self.factors = weights, factors
        self.weighted = weights * factors
        self.sum = sum_of(self.weighted)
        self.total = sum_of(factors)

    def levels(self, scale: Tensor, zero: Tensor) -> Tensor:
        inverse = 1 / scale
        raw = self.weights * inverse + zero
        return raw.round_().clamp_(-8, 7)

    def fit(self, scale: Tensor, zero: Tensor, *, free: bool) -> Fit:
        """The levels that weights have at a scale and a zero, and the best scale for them: with the
        zero that belongs to it, or (not free) with the one that is given."""
        level = self.levels(scale, zero)
        of_factors = level * self.factors
        d, dd = sum_of(of_factors), sum_of(of_factors * level)
        wd, n = sum_of(self.weighted * level), self.total
        if free:
            over, under = n * wd - self.sum * d, n * dd - d * d
            best = over / under
            return Fit(best, -((self.sum - best * d) / n) / best, best * over)
        over, under = wd - zero * self.sum, (dd - 2 * zero * d) + n * (zero * zero)
        best = over / under
        return Fit(best, zero, best * over)

    def squared_error(self, level: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        found = scale * (level - zero)
        error = self.weights - found
        return sum_of(error * error * self.factors)


def sum_of(values: Tensor) -> Tensor:
    """[size, ...] -> [...], in the order of additions that the native pass has."""
    total = values[0].clone()
    for part in values[1:]:
        total += part
    return total


def best_fit(groups: Groups, low: Tensor, high: Tensor, scheme: str) -> Fit:
    """The best scale that was found, not yet rounded, and the zero that is stored. 0: none."""
    free, whole = scheme in ("affine", "affine8"), scheme == "asym"
    best = Fit(*(torch.zeros_like(low) for _ in range(3)))
    largest = torch.where(high >= -low, high, low)
    if free or whole:
        spread = high - low
        wide = spread > NARROW * largest.abs()
        for width in WIDTHS:
            scale = spread / 15 * width
            for shift in SHIFTS:
                minimum = low + (0.5 * (spread - 15 * scale) + shift * scale)
                zero = -minimum / scale - 8
                if whole:
                    zero = zero.round().clamp(*WHOLE)
                fit = groups.fit(scale, zero, free=free)
                best.take(fit, wide & (fit.scale > 0) & fit.is_better_than(best.gain))
    else:
        for level in TOP_LEVELS:
            fit = groups.fit(-largest / level, torch.zeros_like(low), free=False)
            best.take(fit, fit.is_better_than(best.gain))
    going = best.scale != 0
    for _ in range(REFINEMENTS):
        fit = groups.fit(best.scale, best.zero, free=free)
        going &= fit.is_better_than(best.gain)
        best.take(fit, going)
    if scheme != "affine8":
        return best
    zero = (MINIMUM_STEPS * best.zero).round().clamp(*EIGHTHS) / MINIMUM_STEPS
    found = best.scale != 0
    best = groups.fit(best.scale, zero, free=False)
    missing = ~(found & best.is_better_than(0))
    best.scale = best.scale.masked_fill(missing, 0)
    return best


def by_column(grouped: Tensor) -> Tensor:
    """[rows, groups, size] -> [size, rows, groups]"""
    return grouped.permute(2, 0, 1).contiguous()


def search_slabs(
    weight: Tensor,
    *,
    group_size: int,
    scheme: str,
    scale_dtype: str,
    importance: Tensor | None = None,
    name: str = "weight",
    first: int = 0,
    last: int | None = None,
    slab_weights: int = SLAB_WEIGHTS,
) -> Iterator[QuantizedMatrix]:
    """`quantize_search` a few row tiles at a time: the pieces from row `first` up to row `last`."""
    cols = weight.shape[1]
    count = group_count(cols, group_size)
    size = cols if group_size == -1 else group_size
    ragged = count * size - cols
    factors = torch.ones(cols) if importance is None else importance.float()
    factors = by_column(F.pad(factors, (0, ragged)).view(1, count, size))
    dtype = SCALE_DTYPES[scale_dtype]
    smallest = torch.finfo(dtype).smallest_normal
    # The plain form of byte minima has whole zeros.
    plain_scheme = "asym" if scheme == "affine8" else scheme
    for start, slab, grouped in grouped_slabs(weight, group_size, first, last, slab_weights):
        end = start + len(slab)
        (plain,) = rtn_slabs(
            weight,
            weight_dtype=PLAIN,
            group_size=group_size,
            scheme=plain_scheme,
            scale_dtype=scale_dtype,
            name=name,
            first=start,
            last=end,
            slab_weights=slab_weights,
        )
        low, high = grouped.amin(-1), grouped.amax(-1)
        padded = F.pad(slab, (0, ragged)).view(-1, count, size)
        groups = Groups(by_column(padded), factors)
        found = best_fit(groups, low, high, scheme)

        scales = found.scale.to(dtype)
        stored = scales.float()
        zero = found.zero
        if scheme == "affine":
            minima = (-(zero + 8) * found.scale).to(dtype)
            zero = -minima.float() / stored - 8
        levels = groups.levels(stored, zero)
        before = F.pad(plain.codes.float(), (0, ragged), value=8).view(-1, count, size)
        before = by_column(before) - 8
        old_zero = torch.zeros_like(low)
        if plain.zeros is not None:
            old_zero = plain.zeros.float() - 8
        if plain.minima is not None:
            old_zero = -plain.minima.float() / plain.scales.float() - 8
        better = groups.squared_error(levels, stored, zero) < groups.squared_error(
            before, plain.scales.float(), old_zero
        )
        # What rtn.py does about scales that are not normal numbers is not done twice.
        better &= stored.isfinite() & (found.scale.abs() >= smallest) & (plain.scales != 0)
        if scheme == "affine":
            better &= minima.isfinite()
        codes = torch.where(better, levels, before).add_(8).to(torch.int8).permute(1, 2, 0)
        result = QuantizedMatrix(
            codes.reshape(end - start, -1)[:, :cols],
            torch.where(better, scales, plain.scales),
            None,
            plain.underflows,
        )
        if scheme == "asym":
            assert plain.zeros is not None
            result.zeros = torch.where(better, (zero + 8).to(torch.int8), plain.zeros)
        elif scheme == "affine":
            assert plain.minima is not None
            result.minima = torch.where(better, minima, plain.minima)
        elif scheme == "affine8":
            eighths = torch.where(better, -MINIMUM_STEPS * zero, -MINIMUM_STEPS * old_zero)
            result.minima = eighths.to(torch.int8)
        yield result


def quantize_search(weight: Tensor, **options: object) -> QuantizedMatrix:
    """Quantize a [rows, cols] matrix of any float dtype to int4.

    group_size, scheme, scale_dtype, name: as `rtn.quantize_rtn` has them, and scheme "affine8"
    importance: [cols], or None: all columns count alike

    Raises what `quantize_rtn` raises.
    """
    return joined(list(search_slabs(weight, **options)))  # type: ignore[arg-type]


def packed_search(
    weight: Tensor,
    *,
    group_size: int,
    scheme: str,
    scale_dtype: str,
    name: str = "weight",
    slab_weights: int = NATIVE_SLAB_WEIGHTS,
) -> Iterator[PackedSlab]:
    """`quantize_search` with packed results, piece by piece in row order, without importance.
    Raises the same errors."""
    options: dict[str, Any] = {
        "group_size": group_size,
        "scheme": scheme,
        "scale_dtype": scale_dtype,
    }
    slabs = partial(search_slabs, weight, **options, name=name)
    return packed_slabs(weight, slab_weights, slabs, weight_dtype=PLAIN, search=True, **options)
