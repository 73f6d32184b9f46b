"""One block of the decoder in PyTorch, with gradients: what a calibrated algorithm works on.

It is made from the family's description, so that every family and every merged adapter can be
calibrated, and no other block needs to be in memory. Its modules have the checkpoint's names
relative to the block, such as "self_attn.q_proj". They are looked up at each call, so an algorithm
may put its own module in the place of a linear layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuralchat_lite.checkpoints.source import Source
from neuralchat_lite.families.architecture import Architecture
from neuralchat_lite.families.block import Linear, Norm

ACTIVATIONS = {"silu": F.silu}


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension."""

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class TorchBlock(nn.Module):
    """Layer `index` of a source in fp32. `forward` takes and gives [samples, length, hidden]."""

    def __init__(self, source: Source, index: int) -> None:
        super().__init__()
        self.architecture: Architecture = source.architecture
        self.block = source.architecture.block
        self.window = source.architecture.windows[index]
        whole = source.architecture.layer(index)
        for norm, full in zip(self.block.norms, whole.norms, strict=True):
            self.place(norm, RMSNorm(in_fp32(source, full.weight), source.architecture.norm_eps))
        for linear, full_linear in zip(self.block.linears, whole.linears, strict=True):
            made = nn.Linear(linear.cols, linear.rows, linear.has_bias, device="meta")
            made.weight = nn.Parameter(in_fp32(source, full_linear.weight), requires_grad=False)
            if full_linear.bias is not None:
                made.bias = nn.Parameter(in_fp32(source, full_linear.bias), requires_grad=False)
            self.place(linear, made)

    def place(self, part: Linear | Norm, module: nn.Module) -> None:
        *path, last = part.name.split(".")
        parent: nn.Module = self
        for name in path:
            if name not in dict(parent.named_children()):
                parent.add_module(name, nn.Module())
            parent = getattr(parent, name)
        parent.add_module(last, module)

    def run(self, part: Linear | Norm, x: Tensor) -> Tensor:
        result: Tensor = self.get_submodule(part.name)(x)
        return result

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """cos, sin: [length, head_dim / 2], of `RotaryTable`"""
        block = self.block
        x = x + self.run(block.output, self.attention(self.run(block.attention_norm, x), cos, sin))
        y = self.run(block.mlp_norm, x)
        gate, up = torch.cat([self.run(part, y) for part in block.gate_up], -1).chunk(2, -1)
        return x + self.run(block.down, ACTIVATIONS[block.activation](gate) * up)

    def attention(self, y: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        arch, block = self.architecture, self.block
        samples, length, _ = y.shape
        qkv = torch.cat([self.run(part, y) for part in block.qkv], -1)
        sizes = [arch.query_size, arch.kv_size, arch.kv_size]
        # [samples, heads, length, head_dim]
        q, k, v = (
            part.view(samples, length, -1, arch.head_dim).transpose(1, 2)
            for part in torch.split(qkv, sizes, -1)
        )
        if block.query_norm is not None:
            q = self.run(block.query_norm, q)
        if block.key_norm is not None:
            k = self.run(block.key_norm, k)
        out = F.scaled_dot_product_attention(
            rotated(q, cos, sin),
            rotated(k, cos, sin),
            v,
            attn_mask=window_mask(length, self.window),
            scale=block.scale,
            enable_gqa=True,
        )
        return out.transpose(1, 2).reshape(samples, length, arch.query_size)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotary embedding of [..., length, head_dim]: value i is paired with i + head_dim / 2."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def window_mask(length: int, window: int | None) -> Tensor:
    """[length, length]: whether a query (row) sees a key (column)."""
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    return mask if window is None else mask.triu(1 - window)


def in_fp32(source: Source, name: str) -> Tensor:
    """A copy of a tensor: the source's own may be a view of its file."""
    return source.weight(name).to(torch.float32, copy=True)
