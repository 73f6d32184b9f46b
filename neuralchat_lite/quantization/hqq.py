"""HQQ (Badri and Shaji, 2023): the zero point of each group, without calibration.

Zeros are moved so that the error of most weights is small, at the cost of a few that are far out
(a norm below 1), by half-quadratic splitting. Neural Compressor's solver does it. Its own grouping
runs over rows, which no kernel here reads, so it is given the groups of this library. Three things
are ours: the zero is rounded and clipped to what is stored (with scheme "affine" as a minimum in
floats), the scale is that which is stored, and a symmetric group, which has no zero to be moved,
has its scale solved for by the same splitting.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from neuralchat_lite.checkpoints.finite import not_finite
from neuralchat_lite.checkpoints.source import Source
from neuralchat_lite.families.architecture import TensorSpec
from neuralchat_lite.kernels.layout import MINIMUM_STEPS, ROW_TILE
from neuralchat_lite.quantization.algorithm_args import all_settings
from neuralchat_lite.quantization.blockwise import require_packages
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.quantization.quantizer import PackedSlab, Quantizer, QuantizerIdentity
from neuralchat_lite.quantization.quiet import quiet
from neuralchat_lite.quantization.rtn import QuantizedMatrix
from neuralchat_lite.quantization.target import Target

VERSION = 1
SLAB_WEIGHTS = 1 << 21  # the solver stops a slab when its mean error grows
PACKAGES = {
    "neural_compressor": "neural-compressor-pt",
    "cpuinfo": "py-cpuinfo",
    "prettytable": "prettytable",
}


class HalfQuadratic(Quantizer):
    """The quantizer of algorithm "HQQ"."""

    def __init__(self, config: WeightOnlyQuantConfig) -> None:
        self.config = config
        self.settings = all_settings("HQQ", config.algorithm_args)

    @property
    def identity(self) -> QuantizerIdentity:
        return QuantizerIdentity("hqq", VERSION, self.settings)

    def slabs(self, source: Source, spec: TensorSpec) -> Iterator[PackedSlab]:
        require_packages("HQQ", PACKAGES)
        settings = self.config.settings_of(spec.module)
        assert settings is not None, f"{spec.module} stays as it is"
        target = Target.of(spec.module, spec.module, settings)
        weight = source.weight(spec.name)
        step = max(SLAB_WEIGHTS // weight.shape[1] // ROW_TILE, 1) * ROW_TILE
        for first in range(0, weight.shape[0], step):
            slab = weight[first : first + step].float()
            if not bool(slab.isfinite().all()):
                raise not_finite(spec.name, slab, first)
            with quiet(), quick_collections():
                matrix = solved(slab, target, self.settings)
            yield matrix.packed(target.stored)


@contextlib.contextmanager
def quick_collections() -> Iterator[None]:
    """The solver collects garbage at each call, which takes longer than its work: let it look at
    new objects only."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def solved(weight: Tensor, target: Target, settings: dict[str, Any]) -> QuantizedMatrix:
    """weight: [rows, cols] fp32"""
    rows, cols = weight.shape
    size = cols if target.group_size == -1 else target.group_size
    groups = -(-cols // size)
    padding = groups * size - cols
    # Copies of the last column, which do not widen a group's range.
    full = F.pad(weight[None], (0, padding), mode="replicate")[0] if padding else weight
    grouped = full.reshape(rows * groups, size)
    solve = symmetric if target.symmetric else asymmetric
    levels, scales, zeros = solve(grouped, target, settings)
    return target.matrix(
        levels.view(rows, groups * size)[:, :cols],
        scales.view(rows, groups),
        zeros.view(rows, groups),
    )


def stored_zeros(zeros: Tensor, scales: Tensor, target: Target) -> Tensor:
    """The zeros as kernels will read them: whole, in eighths, or from a minimum in the scales'
    dtype."""
    highest = (1 << target.bits) - 1
    if target.scheme == "affine":
        return target.zeros_of(target.minima_of(zeros, scales), scales)
    steps = MINIMUM_STEPS if target.scheme == "affine8" else 1
    return (zeros * steps).round_().div_(steps).clamp_(0, highest)


Solution = tuple[Tensor, Tensor, Tensor]  # levels [groups, size], scales and zeros [groups, 1]


def asymmetric(grouped: Tensor, target: Target, settings: dict[str, Any]) -> Solution:
    from neural_compressor.torch.algorithms.weight_only.hqq.optimizer import (
        optimize_weights_proximal,
    )

    highest = (1 << target.bits) - 1
    low, high = grouped.amin(1, keepdim=True), grouped.amax(1, keepdim=True)
    if target.scheme != "affine":  # zero lies within the levels
        low, high = low.clamp_(max=0), high.clamp_(min=0)
    scales = as_stored((high - low) / highest, target)
    inverse = 1 / scales
    _, zeros = optimize_weights_proximal(
        grouped,
        inverse,
        -low * inverse if target.has_minima else (-low * inverse).round_(),
        (0, highest),
        axis=1,
        opt_params={name: settings[name] for name in ("lp_norm", "beta", "kappa", "iters")},
    )
    zeros = stored_zeros(zeros.clone(), scales, target)
    levels = (grouped * inverse).add_(zeros).round_().clamp_(0, highest)
    return levels, scales, zeros


def symmetric(grouped: Tensor, target: Target, settings: dict[str, Any]) -> Solution:
    """min over scale of |w - scale * q|_p: the error is split off by shrinking, and the scale that
    fits the rest is a quotient of sums."""
    middle = 1 << (target.bits - 1)
    scales = as_stored(grouped.abs().amax(1, keepdim=True) / (middle - 0.5), target)
    levels = rounded(grouped, scales, middle)
    least = (grouped - scales * levels).abs().mean(1, keepdim=True)
    best, beta, power = scales, float(settings["beta"]), settings["lp_norm"] - 1
    for _ in range(settings["iters"]):
        error = grouped - scales * levels
        size = error.abs()
        apart = error.sign() * F.relu(size - size.clamp_min(1e-12).pow(power) / beta)
        fitted = (levels * (grouped - apart)).sum(1, keepdim=True)
        scales = as_stored(fitted / levels.square().sum(1, keepdim=True).clamp_min(1), target)
        levels = rounded(grouped, scales, middle)
        found = (grouped - scales * levels).abs().mean(1, keepdim=True)
        best = torch.where(found < least, scales, best)
        least = torch.minimum(least, found)
        beta *= settings["kappa"]
    return rounded(grouped, best, middle) + middle, best, torch.full_like(best, float(middle))


def rounded(grouped: Tensor, scales: Tensor, middle: int) -> Tensor:
    return (grouped / scales).round_().clamp_(-middle, middle - 1)


def as_stored(scales: Tensor, target: Target) -> Tensor:
    """The scales as kernels will read them; never zero, for a group of zeros."""
    dtype = target.torch_scale_dtype
    return scales.to(dtype).float().clamp_(min=torch.finfo(dtype).smallest_normal)
