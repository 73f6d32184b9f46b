from __future__ import annotations

import pytest
import torch

from neuralchat_lite.kernels.layout import (
    dequantize,
    pack_codes,
    pack_groups,
    packed_shapes,
    unpack_codes,
    unpack_groups,
)


@pytest.mark.parametrize(("weight_dtype", "low", "high"), [("int4", 0, 16), ("int8", -128, 128)])
@pytest.mark.parametrize("shape", [(1, 1), (16, 32), (17, 33), (40, 172)])
def test_packed_codes_lie_where_the_layout_says(weight_dtype, low, high, shape):
    rows, cols = shape
    codes = torch.randint(low, high, shape).to(torch.int8)
    packed = pack_codes(codes, weight_dtype)
    assert packed.shape == packed_shapes(weight_dtype, rows, cols, 32)[0]
    for row in range(rows):
        for col in range(cols):
            if weight_dtype == "int8":
                byte = packed[row // 16, col // 4, row % 16 * 4 + col % 4].item()
                code = byte - 256 if byte > 127 else byte
            else:
                byte = packed[row // 16, col // 8, row % 16 * 4 + col % 4].item()
                code = byte & 15 if col % 8 < 4 else byte >> 4
            assert code == codes[row, col].item()
    assert torch.equal(unpack_codes(packed, weight_dtype, rows, cols), codes)


def test_scales_and_zeros_are_stored_per_row_tile_and_group():
    values = torch.arange(20 * 3).view(20, 3).to(torch.int8)
    packed = pack_groups(values)
    assert packed.shape == (2, 3, 16)
    assert packed[1, 2, 3] == values[19, 2]
    assert packed[1, :, 4:].eq(0).all()  # rows that only fill the tile
    assert torch.equal(unpack_groups(packed, 20), values)


@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("scheme", ["sym", "asym"])
def test_dequantize_is_scale_times_code_minus_zero(packed, group_size, scheme):
    matrix = packed(18, 172, "int8", group_size, scheme, "fp32")
    weights = dequantize(matrix)
    codes = unpack_codes(matrix.codes, "int8", 18, 172)
    for row, col in [(0, 0), (5, 31), (5, 32), (17, 171), (16, 128)]:
        group = 0 if group_size == -1 else col // group_size
        scale = matrix.scales[row // 16, group, row % 16]
        zero = 0 if matrix.zeros is None else matrix.zeros[row // 16, group, row % 16].item()
        assert weights[row, col] == scale * (codes[row, col].item() - zero)


@pytest.mark.parametrize("weight_dtype", ["int4", "int8"])
def test_affine_weights_are_scale_times_code_plus_minimum(packed, weight_dtype):
    matrix = packed(18, 172, weight_dtype, 64, "affine", "fp32")
    weights = dequantize(matrix)
    codes = unpack_codes(matrix.codes, weight_dtype, 18, 172)
    assert matrix.scheme == "affine"
    assert matrix.nbytes == matrix.codes.nbytes + 2 * matrix.scales.nbytes
    for row, col in [(0, 0), (5, 63), (5, 64), (17, 171), (16, 128)]:
        place = row // 16, col // 64, row % 16
        assert weights[row, col] == matrix.scales[place] * codes[row, col] + matrix.minima[place]
