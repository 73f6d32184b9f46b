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
    Plan,
    Projection,
    RMSNorm,
    Rotary,
    Span,
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
    "PARTS",
    "NativeKernels",
    "NativeProgram",
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

# Of a step, in the order of csrc/ops/step.h: Part.
PARTS = ("embedding", "qkv", "attention", "output", "gate_up", "down", "head")

FLOAT_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def round_to_nearest(
    weight: Tensor,
    stored: str,
    lowest: int,
    highest: int,
    steps: int,
    group_size: int,
    scale_dtype: torch.dtype,
    scheme: str,
    search: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None] | None:
    """Quantize [rows, cols] weights into packed codes, scales, zeros and minima in one pass.

    stored: "int4" or "int8"; lowest, highest: codes, before the symmetric zero is added
    steps: a group's scale is its largest weight (not symmetric: its range) divided by `steps`
    search: for better scales and zeros or minima, as `quantization.search` does

    The result has the same bits as `quantization.rtn` or `search`. None when the weights hold NaN
    or infinity, or need a scale or a minimum that overflows, or a scale that is subnormal: the
    kernel does not handle these cases.
    """
    isa(), threads()
    rows, cols = weight.shape
    assert weight.is_contiguous()
    codes_shape, scales_shape = packed_shapes(stored, rows, cols, group_size)
    codes = torch.empty(codes_shape, dtype=torch.uint8)
    scales = torch.zeros(scales_shape, dtype=scale_dtype)  # zero for padded rows
    zeros = torch.zeros(scales_shape, dtype=torch.int8) if scheme == "asym" else None
    minima = None
    if scheme in ("affine", "affine8"):
        minima = torch.zeros_like(scales, dtype=torch.int8 if scheme == "affine8" else scale_dtype)
    beside = zeros if minima is None else minima
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
        scheme,
        codes.data_ptr(),
        scales.data_ptr(),
        0 if beside is None else beside.data_ptr(),
        search,
    )
    return (codes, scales, zeros, minima) if done else None


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
            add_matrix(handle, matrix, 0 if bias is None else bias.data_ptr())
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
        spans: Sequence[Span],
        rotary: Rotary,
        shape: AttentionShape,
        out: Tensor,
    ) -> None:
        count = sum(span.count for span in spans)
        assert is_matrix(qkv, count, shape.qkv_size)
        assert is_matrix(out, count, shape.heads * shape.head_dim)
        check_spans(spans, rotary, shape)
        _native.attention(
            attention_shape(shape),
            qkv.data_ptr(),
            [(s.count, s.start, s.tables[shape.table].addresses.data_ptr()) for s in spans],
            rotary.cos.data_ptr(),
            rotary.sin.data_ptr(),
            out.data_ptr(),
        )

    def program(self, plan: Plan) -> NativeProgram:
        return NativeProgram(plan)


class NativeProgram:
    """A plan in the core: one call runs all of it.

    seconds: where the time of each of PARTS is added, [7] fp64; None: it is not measured
    """

    def __init__(self, plan: Plan) -> None:
        head, table = plan.head, plan.embedding
        assert isinstance(head, NativeProjection)
        self.plan = plan  # kept alive: the handle points into it
        self.vocabulary, self.hidden = matrix_shape(table)
        hidden = self.hidden
        assert head.rows == self.vocabulary and is_norm(plan.norm, hidden)
        embedding = _native.Projection("fp32")  # copied: a description of the matrix
        add_matrix(embedding, table, 0)
        self.handle = _native.Program(
            embedding,
            plan.norm.weight.data_ptr(),
            plan.norm.eps,
            head.handle,
        )
        self.seconds: Tensor | None = None
        for layer in plan.layers:
            qkv, output, gate_up, down = layer.projections
            assert isinstance(qkv, NativeProjection) and isinstance(output, NativeProjection)
            assert isinstance(gate_up, NativeProjection) and isinstance(down, NativeProjection)
            assert qkv.cols == output.rows == gate_up.cols == down.rows == hidden
            assert qkv.rows == layer.attention.qkv_size and gate_up.rows == 2 * down.cols
            assert output.cols == layer.attention.heads * layer.attention.head_dim
            norms = layer.attention_norm, layer.mlp_norm
            assert all(is_norm(norm, hidden) for norm in norms)
            self.handle.add_layer(
                norms[0].weight.data_ptr(),
                norms[0].eps,
                qkv.handle,
                attention_shape(layer.attention),
                layer.attention.table,
                output.handle,
                norms[1].weight.data_ptr(),
                norms[1].eps,
                gate_up.handle,
                layer.activation,
                down.handle,
            )
        # One layer of each table, for the checks of a call.
        self.shapes = {layer.attention.table: layer.attention for layer in plan.layers}.values()

    def __call__(
        self,
        ids: Tensor,
        spans: Sequence[Span],
        rotary: Rotary,
        wanted: Sequence[int],
        states: bool = False,
    ) -> Tensor:
        rows = sum(span.count for span in spans)
        assert is_stored(ids, (rows,), torch.int64)
        assert all(0 <= row < rows for row in wanted)
        for shape in self.shapes:
            check_spans(spans, rotary, shape)
        width = self.hidden if states else self.vocabulary
        out = torch.empty((len(wanted), width), dtype=torch.float32)
        rows_wanted = torch.tensor(wanted, dtype=torch.int64)
        _native.step(
            self.handle,
            ids.data_ptr(),
            rows,
            [
                (span.count, span.start, [table.addresses.data_ptr() for table in span.tables])
                for span in spans
            ],
            rotary.cos.data_ptr(),
            rotary.sin.data_ptr(),
            rows_wanted.data_ptr(),
            len(wanted),
            states,
            out.data_ptr(),
            0 if self.seconds is None else self.seconds.data_ptr(),
        )
        return out


def attention_shape(shape: AttentionShape) -> _native.AttentionShape:
    query_norm, key_norm = shape.query_norm, shape.key_norm
    norms = [norm for norm in (query_norm, key_norm) if norm is not None]
    assert all(is_norm(norm, shape.head_dim) for norm in norms)
    assert len({norm.eps for norm in norms}) <= 1
    return _native.AttentionShape(
        shape.heads,
        shape.kv_heads,
        shape.head_dim,
        shape.window or 0,
        shape.scale,
        shape.kv_format.name,
        0 if query_norm is None else query_norm.weight.data_ptr(),
        0 if key_norm is None else key_norm.weight.data_ptr(),
        norms[0].eps if norms else 0.0,
        shape.page_layer,
    )


def check_spans(spans: Sequence[Span], rotary: Rotary, shape: AttentionShape) -> None:
    """Asserts that the pages that a layer of this shape reads and writes are there."""
    end = max(span.start + span.count for span in spans)
    for angles in (rotary.cos, rotary.sin):
        assert len(angles) >= end and is_matrix(angles, len(angles), shape.head_dim // 2)
    for span in spans:
        table = span.tables[shape.table]
        layers, *head = table.shape
        assert shape.page_layer < layers
        assert head == [shape.kv_heads, shape.kv_format.head_bytes(shape.head_dim)]
        assert span.count
        assert table.holds(shape.first_seen(span.start), span.start + span.count)


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


def add_matrix(handle: _native.Projection, matrix: PackedMatrix | Tensor, bias: int) -> None:
    if isinstance(matrix, PackedMatrix):
        add_packed(handle, matrix, bias)
    else:
        add_dense(handle, matrix, bias)


def add_packed(handle: _native.Projection, matrix: PackedMatrix, bias: int) -> None:
    shape = matrix.weight_dtype, matrix.rows, matrix.cols, matrix.group_size
    codes_shape, scales_shape = packed_shapes(*shape)
    assert matrix.codes.shape == codes_shape and matrix.codes.dtype == torch.uint8
    assert matrix.scales.shape == scales_shape and matrix.scales.dtype in FLOAT_NAMES
    zeros = matrix.zeros
    assert zeros is None or (zeros.shape == scales_shape and zeros.dtype == torch.int8)
    minima = matrix.minima
    byte_minima = matrix.scheme == "affine8"
    minima_dtype = torch.int8 if byte_minima else matrix.scales.dtype
    assert minima is None or (minima.shape == scales_shape and minima.dtype == minima_dtype)
    assert not byte_minima or matrix.weight_dtype == "int4"
    assert zeros is None or minima is None
    tensors = (matrix.codes, matrix.scales, zeros, minima)
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
        0 if minima is None else minima.data_ptr(),
        byte_minima,
        blocks if matrix.group_size == -1 else matrix.group_size // COLUMN_BLOCK,
        bias,
    )


def add_dense(handle: _native.Projection, matrix: Tensor, bias: int) -> None:
    assert matrix.is_contiguous()
    rows, cols = matrix.shape
    handle.add(
        FLOAT_NAMES[matrix.dtype], rows, cols, matrix.data_ptr(), 0, "fp32", 0, 0, False, 1, bias
    )
