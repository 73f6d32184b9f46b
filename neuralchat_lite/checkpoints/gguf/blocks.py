"""Blocks of GGUF in codes, scales and minima of ours, without a detour over weights.

ggml keeps 32 weights in a block with one scale, or 256 in a k-quant with scales of scales. Each
becomes groups of 32 whose weights are, bit for bit in fp32, those that ggml computes:

    sym     scale * (code - zero), zero 8 for int4 and 0 for int8
    affine  scale * code + minimum

Only Q6_K, whose groups have 16 weights, is rounded: see `requantized`. The layouts are those of
ggml-quants.c (MIT licence, https://github.com/ggml-org/ggml).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from neuralchat_lite.checkpoints.gguf.types import TYPE_SIZES

GROUP = 32
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating]


class Codes(NamedTuple):
    """A matrix as codes, with a scale for each group of 32 columns.

    codes: [rows, cols] int8; int4: 0..15
    scales: [rows, cols / 32] fp16 or fp32
    minima: as scales; None where the scheme is "sym"
    error: the squared error that rounding added, and the sum of all squares; None: exact
    """

    codes: npt.NDArray[np.int8]
    scales: Floats
    minima: Floats | None = None
    error: tuple[float, float] | None = None


class Setting(NamedTuple):
    """The options of WeightOnlyQuantConfig that the codes of a type have. Groups have 32."""

    weight_dtype: str
    scheme: str
    scale_dtype: str


def halves(packed: Bytes) -> Bytes:
    """[..., n] bytes -> [..., 2n]: all low nibbles, then all high ones."""
    return np.concatenate((packed & 15, packed >> 4), axis=-1)


def half(blocks: Bytes, first: int) -> npt.NDArray[np.float16]:
    """The fp16 number at byte `first` of each block: [n, 1]."""
    return np.ascontiguousarray(blocks[:, first : first + 2]).view(np.float16)


def fifth_bits(blocks: Bytes, first: int) -> Bytes:
    """[n, 32] bits 4 of the codes, from 32 bits at byte `first`, as 0 or 16."""
    bits = np.unpackbits(blocks[:, first : first + 4], axis=1, bitorder="little")
    shifted: Bytes = bits << np.uint8(4)
    return shifted


def q8_0(blocks: Bytes) -> Codes:
    return Codes(blocks[:, 2:].view(np.int8), half(blocks, 0))


def q4_0(blocks: Bytes) -> Codes:
    return Codes(halves(blocks[:, 2:]).view(np.int8), half(blocks, 0))


def q4_1(blocks: Bytes) -> Codes:
    return Codes(halves(blocks[:, 4:]).view(np.int8), half(blocks, 0), half(blocks, 2))


def q5_0(blocks: Bytes) -> Codes:
    codes = halves(blocks[:, 6:]) | fifth_bits(blocks, 2)
    return Codes(codes.view(np.int8) - np.int8(16), half(blocks, 0))


def q5_1(blocks: Bytes) -> Codes:
    codes = halves(blocks[:, 8:]) | fifth_bits(blocks, 4)
    return Codes(codes.view(np.int8), half(blocks, 0), half(blocks, 2))


def scales_and_minima(blocks: Bytes) -> tuple[Floats, Floats]:
    """Of the 8 groups of a k-quant: [n, 8] fp32 scales and minima.

    Bytes 4..15 hold 8 scales and 8 minima of 6 bits: the first four of each in the low bits of 4
    bytes, of the last four the low bits in a nibble, and their two high bits above the first.
    """
    scale, minimum, low = (blocks[:, first : first + 4] for first in (4, 8, 12))
    scales = np.concatenate((scale & 63, (low & 15) | ((scale >> 6) << 4)), axis=1)
    minima = np.concatenate((minimum & 63, (low >> 4) | ((minimum >> 6) << 4)), axis=1)
    of_scales, of_minima = half(blocks, 0), half(blocks, 2)
    return (
        of_scales.astype(np.float32) * scales.astype(np.float32),
        -(of_minima.astype(np.float32) * minima.astype(np.float32)),
    )


def q4_k(blocks: Bytes) -> Codes:
    """32 bytes hold one group in low nibbles and the next in high ones."""
    codes = halves(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 256)
    return Codes(codes.view(np.int8), *scales_and_minima(blocks))


def q5_k(blocks: Bytes) -> Codes:
    """As Q4_K; bit g of 32 bytes more is the fifth bit of group g."""
    groups = np.arange(8, dtype=np.uint8)[:, None]
    fifth = ((blocks[:, None, 16:48] >> groups) & 1) << 4
    codes = halves(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32) | fifth
    return Codes(codes.reshape(-1, 256).view(np.int8), *scales_and_minima(blocks))


def q6_k(blocks: Bytes) -> Codes:
    """Halves of 128 weights: low nibbles of 64 bytes, high nibbles, and 2 bits each of 32 more."""
    low = halves(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    places = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = ((blocks[:, 128:192].reshape(-1, 2, 1, 32) >> places) & 3) << 4
    codes = (low | high).view(np.int8) - np.int8(32)
    scales = blocks[:, 192:208].view(np.int8)
    return requantized(codes.reshape(-1, 8, 2, 16), scales.reshape(-1, 8, 2), half(blocks, 208))


def requantized(codes: npt.NDArray[np.int8], scales: npt.NDArray[np.int8], of: Floats) -> Codes:
    """Pairs of groups of 16 in groups of 32 of int8.

    codes: [n, 8, 2, 16], -32..31
    scales: [n, 8, 2]; a weight is of * scale * code
    of: [n, 1]

    The step is a whole part of the larger scale, the smallest with which all codes fit into 8
    bits: 1/4, or less where the codes of this pair are small. So one group of the pair stays as it
    is, and only the other one is rounded, to a quarter of a step of 6 bits or better. The step has
    the sign that makes the extreme code negative, as -128 is a code and 128 is not.
    """
    wide = codes.astype(np.int16) * scales.astype(np.int16)[..., None]  # at most 4096
    largest = np.abs(scales.astype(np.int32)).max(axis=2)
    above, below = wide.max(axis=(2, 3)), -wide.min(axis=(2, 3))
    extreme, other = np.maximum(above, below), np.minimum(above, below)
    parts = np.minimum(
        128 * largest // np.maximum(extreme, 1), 127 * largest // np.maximum(other, 1)
    )
    step = (np.maximum(largest, 1) / np.maximum(parts, 1)).astype(np.float32)
    step *= np.where(above > below, -1, 1).astype(np.float32)
    rounded = np.rint(wide / step[..., None, None])
    wrong = (rounded * step[..., None, None] - wide) * of[:, :, None, None].astype(np.float32)
    exact = wide * of[:, :, None, None].astype(np.float32)
    error = float(np.square(wrong, dtype=np.float64).sum())
    return Codes(
        rounded.astype(np.int8).reshape(-1, 256),
        (of.astype(np.float32) * step).astype(np.float32),
        None,
        (error, float(np.square(exact, dtype=np.float64).sum())),
    )


class BlockType(NamedTuple):
    """How a type is read.

    setting: of the codes that come out
    convert: [n, bytes of a block] -> codes and scales of n blocks, a row each
    """

    setting: Setting
    convert: Callable[[Bytes], Codes]


BLOCK_TYPES: dict[str, BlockType] = {
    "Q8_0": BlockType(Setting("int8", "sym", "fp16"), q8_0),
    "Q4_0": BlockType(Setting("int4", "sym", "fp16"), q4_0),
    "Q4_1": BlockType(Setting("int4", "affine", "fp16"), q4_1),
    "Q5_0": BlockType(Setting("int8", "sym", "fp16"), q5_0),
    "Q5_1": BlockType(Setting("int8", "affine", "fp16"), q5_1),
    "Q4_K": BlockType(Setting("int4", "affine", "fp32"), q4_k),
    "Q5_K": BlockType(Setting("int8", "affine", "fp32"), q5_k),
    "Q6_K": BlockType(Setting("int8", "sym", "fp32"), q6_k),
}
FLOAT_TYPES = ("F32", "F16", "BF16")
PIECE = 1 << 22  # weights that are converted at once: some tens of MB of scratch space


def convert(raw: Bytes, kind: str) -> Codes:
    """Rows of a matrix: [rows, bytes of a row] of a type of BLOCK_TYPES -> codes."""
    values, size = TYPE_SIZES[kind]
    rows, row_bytes = raw.shape
    cols = row_bytes // size * values
    codes = np.empty((rows, cols), np.int8)
    found: list[Codes] = []
    step = max(1, PIECE // cols)
    for first in range(0, rows, step):
        part = raw[first : first + step]
        piece = BLOCK_TYPES[kind].convert(part.reshape(-1, size))
        codes[first : first + step] = piece.codes.reshape(len(part), cols)
        found.append(piece._replace(codes=codes[:0]))
    minima = [piece.minima for piece in found if piece.minima is not None]
    errors = [piece.error for piece in found if piece.error is not None]
    return Codes(
        codes,
        np.concatenate([piece.scales for piece in found], axis=None).reshape(rows, cols // GROUP),
        np.concatenate(minima, axis=None).reshape(rows, cols // GROUP) if minima else None,
        (sum(error for error, _ in errors), sum(all for _, all in errors)) if errors else None,
    )


def weights(raw: Bytes, kind: str) -> npt.NDArray[np.float32]:
    """[rows, cols] fp32 weights of a type of BLOCK_TYPES, as ggml computes them."""
    found = convert(raw, kind)
    zero = 8 if BLOCK_TYPES[kind].setting == Setting("int4", "sym", "fp16") else 0
    grouped = (found.codes - np.int8(zero)).astype(np.float32).reshape(*found.scales.shape, GROUP)
    grouped *= found.scales.astype(np.float32)[..., None]
    if found.minima is not None:
        grouped += found.minima.astype(np.float32)[..., None]
    whole: npt.NDArray[np.float32] = grouped.reshape(len(raw), -1)
    return whole
