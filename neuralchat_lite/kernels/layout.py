"""The weight layout N16K4 in plain PyTorch: what the bytes mean, and the oracle of every kernel.

A matrix of `rows` x `cols` quantized weights is stored as tiles of 16 output rows. int8: a tile
holds 4 input columns, one weight in byte `4 * row + column`. int4: the same 64 bytes hold 8 input
columns: 0..3 in the low nibbles and 4..7 in the high nibbles. Rows are padded to 16 and columns to
32, so that a kernel never meets a partial tile or a partial block of activations.

A weight is `scale * (code - zero)`, or `scale * code + minimum` with a float minimum a group. int4
codes are 0..15; the symmetric zero is 8. int8 codes are -128..127; the symmetric zero is 0. The
minimum of scheme "affine8", for int4 alone, is a byte: `scale * (byte / 8 - 8)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROW_TILE = 16
COLUMN_BLOCK = 32  # columns are padded to it; activations are scaled per block of it
TILE_BYTES = 64
COLUMNS_PER_TILE = {"int4": 8, "int8": 4}
SYMMETRIC_ZERO = {"int4": 8, "int8": 0}
MINIMUM_STEPS = 8  # of a minimum in a byte, in a step of the codes
# The code of padding. Its activation, or its scale and minimum are zero, so any fixed value gives
# the same sum.
PADDING_CODE = SYMMETRIC_ZERO
SCALE_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


@dataclass(frozen=True)
class PackedMatrix:
    """A quantized weight matrix in kernel order.

    codes:  [rows/16, padded cols / columns per tile, 64] uint8
    scales: [rows/16, groups, 16] fp16, bf16 or fp32
    zeros:  [rows/16, groups, 16] int8, or None unless the scheme is "asym"
    minima: [rows/16, groups, 16] in the scales' dtype with scheme "affine", int8 with "affine8", or
        None
    group_size: columns that share a scale: 32, 64, 128, or -1 for a whole row
    """

    weight_dtype: str
    rows: int
    cols: int
    group_size: int
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    minima: Tensor | None = None

    @property
    def scheme(self) -> str:
        """ "sym", "asym", "affine" or "affine8"."""
        if self.minima is not None:
            return "affine8" if self.minima.dtype == torch.int8 else "affine"
        return "sym" if self.zeros is None else "asym"

    @property
    def nbytes(self) -> int:
        tensors = (self.codes, self.scales, self.zeros, self.minima)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def group_count(cols: int, group_size: int) -> int:
    return 1 if group_size == -1 else -(-cols // group_size)


def packed_shapes(
    weight_dtype: str, rows: int, cols: int, group_size: int
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Shapes of `codes` and of `scales` (and `zeros`, `minima`) for a matrix of rows x cols."""
    row_tiles = padded(rows, ROW_TILE) // ROW_TILE
    tiles = padded(cols, COLUMN_BLOCK) // COLUMNS_PER_TILE[weight_dtype]
    groups = group_count(cols, group_size)
    return (row_tiles, tiles, TILE_BYTES), (row_tiles, groups, ROW_TILE)


def pack_codes(codes: Tensor, weight_dtype: str) -> Tensor:
    """[rows, cols] int8 codes (int4: 0..15, int8: -128..127) -> [rows/16, tiles, 64] uint8."""
    rows, cols = codes.shape
    full_rows, full_cols = padded(rows, ROW_TILE), padded(cols, COLUMN_BLOCK)
    if (full_rows, full_cols) != (rows, cols):
        grown = codes.new_full((full_rows, full_cols), PADDING_CODE[weight_dtype])
        grown[:rows, :cols] = codes
        codes = grown
    # [row tile, row, tile of 4 columns, column] -> [row tile, tile of 4 columns, row, column]
    tiles = codes.view(-1, ROW_TILE, full_cols // 4, 4).permute(0, 2, 1, 3)
    tiles = tiles.reshape(-1, full_cols // 4, TILE_BYTES).view(torch.uint8)
    if weight_dtype == "int8":
        return tiles
    pairs = tiles.view(-1, full_cols // 8, 2, TILE_BYTES)
    return pairs[:, :, 0] | (pairs[:, :, 1] << 4)


def unpack_codes(packed: Tensor, weight_dtype: str, rows: int, cols: int) -> Tensor:
    """The inverse of `pack_codes`: [rows, cols] int8."""
    if weight_dtype == "int4":
        packed = torch.stack((packed & 0xF, packed >> 4), dim=2).flatten(1, 2)
    tiles = packed.view(torch.int8).view(packed.shape[0], -1, ROW_TILE, 4)
    return tiles.permute(0, 2, 1, 3).reshape(packed.shape[0] * ROW_TILE, -1)[:rows, :cols]


def pack_groups(values: Tensor) -> Tensor:
    """[rows, groups] scales, zeros or minima -> [rows/16, groups, 16], padded rows zero."""
    rows, groups = values.shape
    grown = values.new_zeros((padded(rows, ROW_TILE), groups))
    grown[:rows] = values
    return grown.view(-1, ROW_TILE, groups).transpose(1, 2).contiguous()


def unpack_groups(packed: Tensor, rows: int) -> Tensor:
    """The inverse of `pack_groups`: [rows, groups]."""
    return packed.transpose(1, 2).reshape(-1, packed.shape[1])[:rows]


def dequantize(matrix: PackedMatrix, dtype: torch.dtype = torch.float32) -> Tensor:
    """[rows, cols] weights of a packed matrix, computed in `dtype` from the stored scales."""
    codes = unpack_codes(matrix.codes, matrix.weight_dtype, matrix.rows, matrix.cols).to(dtype)
    size = matrix.cols if matrix.group_size == -1 else matrix.group_size
    group = torch.arange(matrix.cols) // size
    scales = unpack_groups(matrix.scales, matrix.rows).to(dtype)[:, group]
    if matrix.minima is not None:
        minima = unpack_groups(matrix.minima, matrix.rows).to(dtype)[:, group]
        if matrix.scheme == "affine8":
            minima = scales * (minima / MINIMUM_STEPS - SYMMETRIC_ZERO[matrix.weight_dtype])
        return scales * codes + minima
    if matrix.zeros is None:
        return scales * (codes - SYMMETRIC_ZERO[matrix.weight_dtype])
    return scales * (codes - unpack_groups(matrix.zeros, matrix.rows).to(dtype)[:, group])
