"""A whole decoder in PyTorch and fp32, block by block, whose matrices can be replaced.

It is the measure of what quantized weights cost: activations are exact, and only one block is in
memory beside the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from neuralchat_lite.checkpoints.source import Source
from neuralchat_lite.families.architecture import HEAD
from neuralchat_lite.families.rope import RotaryTable
from neuralchat_lite.quantization.torch_block import TorchBlock, in_fp32

ROWS = 64  # positions whose logits are in memory together, in fp64

# The full name of a module -> its weights in place of the checkpoint's, or None.
Replace = Callable[[str], Tensor | None]


class TorchDecoder:
    """length: positions of each sample."""

    def __init__(self, source: Source, length: int) -> None:
        self.source = source
        self.architecture = source.architecture
        cos, sin = RotaryTable(source.architecture).upto(length)
        self.cos, self.sin = cos[:length], sin[:length]
        self.norm = in_fp32(source, source.architecture.norm.weight)
        self.head = source.weight(HEAD).float()

    def embed(self, ids: Tensor, table: Tensor | None = None) -> Tensor:
        """[samples, length] ids -> [samples, length, hidden]"""
        if table is None:
            table = self.source.weight(self.architecture.embedding_name)
        return table[ids].float()

    def block(self, index: int) -> TorchBlock:
        return TorchBlock(self.source, index)

    def run(self, block: TorchBlock, x: Tensor) -> Tensor:
        result: Tensor = block(x, self.cos, self.sin)
        return result

    def log_probs(self, x: Tensor, head: Tensor | None = None) -> Iterator[Tensor]:
        """[samples, length, hidden] of the last block -> [rows, vocab] fp64, `ROWS` at a time.

        head: in place of the checkpoint's
        """
        normed = F.rms_norm(x, self.norm.shape, self.norm, self.architecture.norm_eps)
        for rows in torch.split(normed.flatten(0, 1), ROWS):
            yield F.linear(rows, self.head if head is None else head).double().log_softmax(-1)

    def states(self, ids: Tensor) -> list[Tensor]:
        """What goes into each block, and what comes out of the last, each [samples, length,
        hidden]."""
        states = [self.embed(ids)]
        for index in range(self.architecture.layers):
            states.append(self.run(self.block(index), states[-1]))
        return states

    def replaced(self, ids: Tensor, replace: Replace) -> Iterator[Tensor]:
        """`log_probs` of a model with other matrices."""
        table = replace(self.architecture.embedding_name.removesuffix(".weight"))
        x = self.embed(ids, table)
        for index in range(self.architecture.layers):
            block = self.block(index)
            full = self.architecture.layer(index)
            for part, linear in zip(block.block.linears, full.linears, strict=True):
                weight = replace(linear.name)
                if weight is not None:
                    block.get_submodule(part.name).weight.data = weight
            x = self.run(block, x)
        return self.log_probs(x, replace(HEAD.removesuffix(".weight")))


def divergence(reference: Tensor, found: Iterator[Tensor]) -> float:
    """Mean KL(reference || found) of the next token, in nats.

    reference: [positions, vocab] fp64 log-probabilities; found: the same, piece by piece
    """
    total, first = 0.0, 0
    for rows in found:
        wanted = reference[first : first + len(rows)]
        total += float((wanted.exp() * (wanted - rows)).sum())
        first += len(rows)
    assert first == len(reference)
    return total / first
