"""Typed calls of the C++ core: they check shapes and types, and pass pointers.

Importing this module starts no thread and chooses no instruction set; the first call does.
Operations run one after the other, also when several threads call them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralchat_lite.kernels import _native
from neuralchat_lite.kernels.layout import (
    COLUMN_BLOCK,
    SYMMETRIC_ZERO,
    PackedMatrix,
    packed_shapes,
)
from neuralchat_lite.kernels.operations import (
    Activation,
    AttentionShape,
    ComputeDtype,
    LayerCache,
    Projection,
    RMSNorm,
)
from neuralchat_lite.kernels.runtime import (
    cpu_features,
    isa,
    measure_bandwidth,
    set_threads,
    threads,
    usable_isas,
    use_isa,
)

__all__ = [
    "NativeKernels",
    "NativeProjection",
    "cpu_features",
    "isa",
    "measure_bandwidth",
    "round_to_nearest",
    "set_threads",
    "threads",
    "usable_isas",
    "use_isa",
]

FLOAT_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def round_to_nearest(
    weight: Tensor,
    stored: str,
    lowest: int,
    highest: int,
    steps: int,
    group_size: int,
    scale_dtype: torch.dtype,
    asymmetric: bool,
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Quantize [rows, cols] weights into packed codes, scales and zeros in one pass.

    stored: "int4" or "int8"; lowest, highest: codes, before the symmetric zero is added
    steps: a group's scale is its largest weight (asymmetric: its range) divided by `steps`

    The result has the same bits as `quantization.rtn`. None when the weights hold NaN or infinity,
    or need a scale that overflows or is subnormal: the kernel does not handle these cases.
    """
    isa(), threads()
    rows, cols = weight.shape
    assert weight.is_contiguous()
    codes_shape, scales_shape = packed_shapes(stored, rows, cols, group_size)
    codes = torch.empty(codes_shape, dtype=torch.uint8)
    scales = torch.zeros(scales_shape, dtype=scale_dtype)  # zero for padded rows
    zeros = torch.zeros(scales_shape, dtype=torch.int8) if asymmetric else None
    done = _native.round_to_nearest(
        weight.data_ptr(),
        FLOAT_NAMES[weight.dtype],
        rows,
        cols,
        cols if group_size == -1 else group_size,
        stored,
        lowest,
        highest,
        steps,
        SYMMETRIC_ZERO[stored],
        FLOAT_NAMES[scale_dtype],
        codes.data_ptr(),
        scales.data_ptr(),
        0 if zeros is None else zeros.data_ptr(),
    )
    return (codes, scales, zeros) if done else None


@dataclass(frozen=True)
class NativeProjection:
    handle: _native.Projection
    matrices: tuple[PackedMatrix | Tensor, ...]  # kept alive: the handle points into them
    biases: tuple[Tensor | None, ...]
    rows: int
    cols: int
    nbytes: int


class NativeKernels:
    def __init__(self) -> None:
        self.name = f"native ({isa().value})"
        threads()

    def projection(
        self,
        matrices: Sequence[PackedMatrix | Tensor],
        biases: Sequence[Tensor | None],
        compute_dtype: ComputeDtype,
    ) -> NativeProjection:
        handle = _native.Projection(compute_dtype)
        floats = tuple(None if bias is None else bias.float().contiguous() for bias in biases)
        rows, cols = 0, matrix_shape(matrices[0])[1]
        for matrix, bias in zip(matrices, floats, strict=True):
            shape = matrix_shape(matrix)
            assert shape[1] == cols and (bias is None or bias.shape == (shape[0],))
            add = add_packed if isinstance(matrix, PackedMatrix) else add_dense
            add(handle, matrix, 0 if bias is None else bias.data_ptr())
            rows += shape[0]
        nbytes = sum(matrix.nbytes for matrix in matrices)
        return NativeProjection(handle, tuple(matrices), floats, rows, cols, nbytes)

    def linear(
        self,
        x: Tensor,
        projection: Projection,
        out: Tensor,
        *,
        norm: RMSNorm | None = None,
        gate: Activation | None = None,
        accumulate: bool = False,
    ) -> None:
        assert isinstance(projection, NativeProjection)
        rows = x.shape[0]  # len() of a tensor goes through Python
        assert is_matrix(x, rows, projection.cols * (2 if gate else 1))
        assert is_matrix(out, rows, projection.rows)
        assert norm is None or is_norm(norm, projection.cols)
        _native.linear(
            projection.handle,
            x.data_ptr(),
            rows,
            0 if norm is None else norm.weight.data_ptr(),
            0.0 if norm is None else norm.eps,
            gate or "",
            accumulate,
            out.data_ptr(),
        )

    def attention(
        self,
        qkv: Tensor,
        cache: LayerCache,
        start: int,
        cos: Tensor,
        sin: Tensor,
        shape: AttentionShape,
        out: Tensor,
    ) -> None:
        count = qkv.shape[0]
        end = start + count
        assert is_matrix(qkv, count, shape.qkv_size)
        assert is_matrix(out, count, shape.heads * shape.head_dim)
        for table in (cos, sin):
            assert len(table) >= end and is_matrix(table, len(table), shape.head_dim // 2)
        # Every position that a new query sees needs a slot of its own.
        seen = end if shape.window is None else min(end, shape.window + count - 1)
        assert cache.capacity >= seen
        slots = shape.kv_heads, shape.head_dim, cache.capacity
        assert is_stored(cache.keys, cache.format.keys_shape(*slots), cache.format.dtype)
        assert is_stored(cache.values, cache.format.values_shape(*slots), cache.format.dtype)
        query_norm, key_norm = shape.query_norm, shape.key_norm
        assert query_norm is None or is_norm(query_norm, shape.head_dim)
        assert key_norm is None or is_norm(key_norm, shape.head_dim)
        _native.attention(
            qkv.data_ptr(),
            count,
            start,
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            shape.window or 0,
            shape.scale,
            cache.keys.data_ptr(),
            cache.values.data_ptr(),
            cache.format.name,
            cache.capacity,
            cos.data_ptr(),
            sin.data_ptr(),
            0 if query_norm is None else query_norm.weight.data_ptr(),
            0 if key_norm is None else key_norm.weight.data_ptr(),
            0.0 if query_norm is None else query_norm.eps,
            out.data_ptr(),
        )


def is_matrix(x: Tensor, rows: int, cols: int) -> bool:
    return is_stored(x, (rows, cols), torch.float32)


def is_stored(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    return x.shape == shape and x.dtype == dtype and x.is_contiguous()


def is_norm(norm: RMSNorm, size: int) -> bool:
    return is_stored(norm.weight, (size,), torch.float32)


def matrix_shape(matrix: PackedMatrix | Tensor) -> tuple[int, int]:
    if isinstance(matrix, PackedMatrix):
        return matrix.rows, matrix.cols
    return matrix.shape[0], matrix.shape[1]


def add_packed(handle: _native.Projection, matrix: PackedMatrix | Tensor, bias: int) -> None:
    assert isinstance(matrix, PackedMatrix)
    shape = matrix.weight_dtype, matrix.rows, matrix.cols, matrix.group_size
    codes_shape, scales_shape = packed_shapes(*shape)
    assert matrix.codes.shape == codes_shape and matrix.codes.dtype == torch.uint8
    assert matrix.scales.shape == scales_shape and matrix.scales.dtype in FLOAT_NAMES
    zeros = matrix.zeros
    assert zeros is None or (zeros.shape == scales_shape and zeros.dtype == torch.int8)
    tensors = (matrix.codes, matrix.scales, zeros)
    assert all(t is None or t.is_contiguous() for t in tensors)
    blocks = -(-matrix.cols // COLUMN_BLOCK)
    handle.add(
        matrix.weight_dtype,
        matrix.rows,
        matrix.cols,
        matrix.codes.data_ptr(),
        matrix.scales.data_ptr(),
        FLOAT_NAMES[matrix.scales.dtype],
        0 if zeros is None else zeros.data_ptr(),
        blocks if matrix.group_size == -1 else matrix.group_size // COLUMN_BLOCK,
        bias,
    )


def add_dense(handle: _native.Projection, matrix: PackedMatrix | Tensor, bias: int) -> None:
    assert isinstance(matrix, Tensor) and matrix.is_contiguous()
    rows, cols = matrix.shape
    handle.add(FLOAT_NAMES[matrix.dtype], rows, cols, matrix.data_ptr(), 0, "fp32", 0, 1, bias)
