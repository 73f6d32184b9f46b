"""The operations in plain PyTorch: slow, obvious, and the oracle in tests of the native ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from neuralchat_lite.kernels.kv_format import KEY_BLOCK
from neuralchat_lite.kernels.layout import PackedMatrix, dequantize
from neuralchat_lite.kernels.operations import (
    Activation,
    AttentionShape,
    ComputeDtype,
    LayerCache,
    Projection,
    RMSNorm,
)

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"silu": functional.silu}


@dataclass(frozen=True)
class ReferenceProjection:
    weight: Tensor  # [rows, cols] fp32, dequantized
    bias: Tensor  # [rows] fp32
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
        return ReferenceProjection(weight, bias, rows, cols, nbytes)

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
        cache: LayerCache,
        start: int,
        cos: Tensor,
        sin: Tensor,
        shape: AttentionShape,
        out: Tensor,
    ) -> None:
        count, dim = len(qkv), shape.head_dim
        sizes = [shape.heads * dim, shape.kv_heads * dim, shape.kv_heads * dim]
        query, key, value = (part.view(count, -1, dim) for part in torch.split(qkv, sizes, dim=-1))
        if shape.query_norm is not None:
            query = rms_norm(query, shape.query_norm)
        if shape.key_norm is not None:
            key = rms_norm(key, shape.key_norm)
        new = torch.arange(start, start + count)
        query, key = rotate(query, cos[new], sin[new]), rotate(key, cos[new], sin[new])

        slots = new % cache.capacity
        cache.keys[:, slots // KEY_BLOCK, :, slots % KEY_BLOCK] = key.to(cache.keys.dtype)
        cache.values[:, slots] = value.transpose(0, 1).to(cache.values.dtype)

        first = 0 if shape.window is None else max(0, start - shape.window + 1)
        seen = torch.arange(first, start + count)  # positions of the keys that any query attends to
        slots = seen % cache.capacity
        keys = cache.keys[:, slots // KEY_BLOCK, :, slots % KEY_BLOCK].float()  # [seen, kv, dim]
        values = cache.values[:, slots].float()  # [kv, seen, dim]
        group = shape.heads // shape.kv_heads
        keys = keys.permute(1, 0, 2).repeat_interleave(group, dim=0)
        values = values.repeat_interleave(group, dim=0)

        scores = query.transpose(0, 1) @ keys.transpose(1, 2) * shape.scale  # [heads, count, seen]
        hidden = seen[None, :] > new[:, None]
        if shape.window is not None:
            hidden |= seen[None, :] <= new[:, None] - shape.window
        scores = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
        out.copy_((scores @ values).transpose(0, 1).reshape(count, -1))


def rms_norm(x: Tensor, norm: RMSNorm) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps) * norm.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [m, heads, dim]: dimension i is paired with i + dim / 2."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
