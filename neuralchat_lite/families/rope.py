"""Rotary position embedding: the angles of each position, with the scalings in use.

The angle of dimension pair i at position p is p * frequency[i] (Su et al., 2021). The scalings
change the frequencies; yarn also scales cos and sin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.families.architecture import Architecture

Parameters = Mapping[str, Any]


def default_frequencies(rope: Parameters, dim: int) -> tuple[Tensor, float]:
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    return 1.0 / (float(rope["rope_theta"]) ** exponents), 1.0


def linear_frequencies(rope: Parameters, dim: int) -> tuple[Tensor, float]:
    frequencies, scale = default_frequencies(rope, dim)
    return frequencies / rope["factor"], scale


def llama3_frequencies(rope: Parameters, dim: int) -> tuple[Tensor, float]:
    """Llama 3.1: slow pairs are slowed by `factor`, fast ones kept, those between blended."""
    frequencies, scale = default_frequencies(rope, dim)
    factor, low, high = (rope[name] for name in ("factor", "low_freq_factor", "high_freq_factor"))
    trained = rope["original_max_position_embeddings"]
    turns = trained * frequencies / (2 * math.pi)  # full rotations within the trained context
    share = ((turns - low) / (high - low)).clamp(0.0, 1.0)  # 1: keep, 0: slow down
    return (1 - share) * frequencies / factor + share * frequencies, scale


def yarn_frequencies(rope: Parameters, dim: int) -> tuple[Tensor, float]:
    """YaRN (Peng et al., 2023): slow pairs are interpolated, fast ones kept, a ramp between."""
    frequencies, _ = default_frequencies(rope, dim)
    factor, theta = rope["factor"], rope["rope_theta"]
    trained = rope["original_max_position_embeddings"]

    def dimension(rotations: float) -> float:
        """The pair of dimensions that rotates so many times within the trained context."""
        return dim * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(rope["beta_fast"]), dimension(rope["beta_slow"])
    if rope["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    span = max(high - low, 0.001)
    slowed = ((torch.arange(dim // 2).float() - low) / span).clamp(0.0, 1.0)
    scale = rope["attention_factor"]
    if scale is None:
        given, every = rope["mscale"], rope["mscale_all_dim"]
        scale = (
            attention_scale(factor, given) / attention_scale(factor, every)
            if given and every
            else attention_scale(factor, 1.0)
        )
    return slowed * frequencies / factor + (1 - slowed) * frequencies, float(scale)


def attention_scale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


# Rope type -> (parameters, head_dim) -> (frequencies [head_dim / 2], scale of cos and sin).
FREQUENCIES: dict[str, Callable[[Parameters, int], tuple[Tensor, float]]] = {
    "default": default_frequencies,
    "linear": linear_frequencies,
    "llama3": llama3_frequencies,
    "yarn": yarn_frequencies,
}


class RotaryTable:
    """cos and sin, [positions, head_dim / 2] fp32, computed up to the largest position so far.

    Raises CheckpointError when its parameters give an angle or a scale that is not a number.
    """

    def __init__(self, architecture: Architecture) -> None:
        rope = architecture.rope
        self.frequencies, self.scale = FREQUENCIES[rope["rope_type"]](rope, architecture.head_dim)
        last = self.frequencies * float(architecture.max_positions) * self.scale
        if not last.isfinite().all():
            raise CheckpointError(
                f"config.json: the rotary embedding {dict(rope)} has angles that are not finite "
                f"within {architecture.max_positions} positions: download the file again"
            )
        self.tables = self.compute(256)

    def compute(self, positions: int) -> tuple[Tensor, Tensor]:
        angles = torch.arange(positions).float()[:, None] * self.frequencies
        return angles.cos() * self.scale, angles.sin() * self.scale

    def upto(self, positions: int) -> tuple[Tensor, Tensor]:
        """Tables of at least `positions` rows. Safe to call from several threads."""
        tables = self.tables
        if len(tables[0]) < positions:
            tables = self.compute(1 << (positions - 1).bit_length())
            self.tables = tables
        return tables
