"""The operations in plain PyTorch: slow, obvious, and the oracle in tests of the native ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from neuralchat_lite.kernels.kv_format import PAGE
from neuralchat_lite.kernels.layout import PackedMatrix, dequantize
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
from neuralchat_lite.kernels.pages import PageTable

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"silu": functional.silu}


@dataclass(frozen=True)
class ReferenceProjection:
    weight: Tensor  # [rows, cols] fp32, dequantized
    bias: Tensor  # [rows] fp32
    matrices: tuple[PackedMatrix | Tensor, ...]
    rows: int
    cols: int
    nbytes: int


class ReferenceKernels:
    """Dequantizes once and computes in fp32, whatever compute_dtype is."""

    name = "reference"

    def projection(
        self,
        matrices: Sequence[PackedMatrix | Tensor],
        biases: Sequence[Tensor | None],
        compute_dtype: ComputeDtype,
    ) -> ReferenceProjection:
        dense = [dequantize(m) if isinstance(m, PackedMatrix) else m.float() for m in matrices]
        weight = torch.cat(dense)
        bias = torch.cat(
            [
                torch.zeros(len(m)) if b is None else b.float()
                for m, b in zip(dense, biases, strict=True)
            ]
        )
        rows, cols = weight.shape
        nbytes = sum(m.nbytes for m in matrices)
        return ReferenceProjection(weight, bias, tuple(matrices), rows, cols, nbytes)

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
        assert isinstance(projection, ReferenceProjection)
        if norm is not None:
            x = rms_norm(x, norm)
        if gate is not None:
            gated, up = x.chunk(2, dim=-1)
            x = ACTIVATIONS[gate](gated) * up
        product = x @ projection.weight.T + projection.bias
        out.copy_(out + product if accumulate else product)

    def attention(
        self,
        qkv: Tensor,
        spans: Sequence[Span],
        rotary: Rotary,
        shape: AttentionShape,
        out: Tensor,
    ) -> None:
        sizes = [span.count for span in spans]
        for span, rows, target in zip(
            spans, torch.split(qkv, sizes), torch.split(out, sizes), strict=True
        ):
            target.copy_(attend(rows, span, rotary, shape))

    def program(self, plan: Plan) -> ReferenceProgram:
        return ReferenceProgram(self, plan)


@dataclass(frozen=True)
class ReferenceProgram:
    """A plan, layer after layer."""

    kernels: ReferenceKernels
    plan: Plan

    def __call__(
        self,
        ids: Tensor,
        spans: Sequence[Span],
        rotary: Rotary,
        wanted: Sequence[int],
        states: bool = False,
    ) -> Tensor:
        plan, kernels, count = self.plan, self.kernels, len(ids)
        table = plan.embedding
        x = (dequantize(table) if isinstance(table, PackedMatrix) else table)[ids].float()
        for layer in plan.layers:
            shape = layer.attention
            qkv = x.new_empty((count, layer.qkv.rows))
            heads = x.new_empty((count, layer.output.cols))
            gate_up = x.new_empty((count, layer.gate_up.rows))
            kernels.linear(x, layer.qkv, qkv, norm=layer.attention_norm)
            kernels.attention(qkv, spans, rotary, shape, heads)
            kernels.linear(heads, layer.output, x, accumulate=True)
            kernels.linear(x, layer.gate_up, gate_up, norm=layer.mlp_norm)
            kernels.linear(gate_up, layer.down, x, gate=layer.activation, accumulate=True)
        last = x[list(wanted)]
        if states:
            return rms_norm(last, plan.norm)
        logits = x.new_empty((len(wanted), plan.head.rows))
        kernels.linear(last, plan.head, logits, norm=plan.norm)
        return logits


def attend(qkv: Tensor, span: Span, rotary: Rotary, shape: AttentionShape) -> Tensor:
    """[count, qkv_size] of one span -> [count, heads * head_dim]."""
    count, dim, table = span.count, shape.head_dim, span.tables[shape.table]
    sizes = [shape.heads * dim, shape.kv_heads * dim, shape.kv_heads * dim]
    query, key, value = (part.view(count, -1, dim) for part in torch.split(qkv, sizes, dim=-1))
    if shape.query_norm is not None:
        query = rms_norm(query, shape.query_norm)
    if shape.key_norm is not None:
        key = rms_norm(key, shape.key_norm)
    new = torch.arange(span.start, span.start + count)
    cos, sin = rotary.cos[new], rotary.sin[new]
    query, key = rotate(query, cos, sin), rotate(key, cos, sin)
    for position, one_key, one_value in zip(new.tolist(), key, value, strict=True):
        page = heads_of(table, position // PAGE, shape)
        shape.kv_format.write(page, position % PAGE, one_key, one_value)

    first = shape.first_seen(span.start)
    seen = torch.arange(first, span.start + count)  # positions that any query attends to
    pages = range(first // PAGE, (span.start + count - 1) // PAGE + 1)
    read = [shape.kv_format.read(heads_of(table, index, shape), dim) for index in pages]
    slots = seen - pages.start * PAGE
    group = shape.heads // shape.kv_heads
    keys, values = (
        torch.cat(parts, dim=1)[:, slots].repeat_interleave(group, dim=0)  # [heads, seen, dim]
        for parts in zip(*read, strict=True)
    )
    scores = query.transpose(0, 1) @ keys.transpose(1, 2) * shape.scale  # [heads, count, seen]
    hidden = seen[None, :] > new[:, None]
    if shape.window is not None:
        hidden |= seen[None, :] <= new[:, None] - shape.window
    scores = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
    return (scores @ values).transpose(0, 1).reshape(count, -1)


def heads_of(table: PageTable, index: int, shape: AttentionShape) -> Tensor:
    """[kv_heads, head_bytes]: one layer of a page."""
    page = table.pages[index]
    assert page is not None
    return page.data[shape.page_layer]


def rms_norm(x: Tensor, norm: RMSNorm) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps) * norm.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [m, heads, dim]: dimension i is paired with i + dim / 2."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
