"""Building a decoder from weights and their description: each layer follows the family's block.

Names come from `Architecture` alone, so that a family is described in one place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from neuralchat_lite.families.architecture import HEAD_MODULE, Architecture
from neuralchat_lite.families.block import Linear, Norm
from neuralchat_lite.kernels.kv_format import KVFormat
from neuralchat_lite.kernels.layout import PackedMatrix
from neuralchat_lite.kernels.leaving import at_work
from neuralchat_lite.kernels.native import NativeKernels
from neuralchat_lite.kernels.operations import (
    COMPUTE_DTYPES,
    AttentionShape,
    Kernels,
    Layer,
    Plan,
    Projection,
    RMSNorm,
)
from neuralchat_lite.models.decoder import KV_FORMAT_OF, PREFILL_BLOCK, Decoder
from neuralchat_lite.models.kv_cache import place_of


class Weights(Protocol):
    """Where a decoder's tensors come from: a checkpoint, or a quantized folder."""

    architecture: Architecture

    def weight(self, name: str) -> Tensor | PackedMatrix:
        """The tensor of a Hugging Face name. The head is `HEAD`, whatever its stored name."""


@at_work()
def load_decoder(
    weights: Weights,
    *,
    compute_dtype: str = "bf16",
    compute_of: Callable[..., str] | None = None,
    context_length: int | None = None,
    kv_format: KVFormat | None = None,
    kernels: Kernels | None = None,
    prefill_block: int = PREFILL_BLOCK,
) -> Decoder:
    """Build a decoder over mapped weights, copying only norms and biases (to fp32).

    compute_dtype: "bf16", "fp32" or "int8", the precision of activations in matrix products
    compute_of: called with the names of modules that share an input, returns the precision of that
        input; None: compute_dtype, for all
    context_length: the most positions, as `checked_context` accepts them; None: the model's default
    kv_format: of keys and values; None: what belongs to compute_dtype
    kernels: None: the native ones
    prefill_block: the most tokens that go through the layers together
    """
    assert compute_dtype in COMPUTE_DTYPES  # the configuration and float_name see to it
    arch = weights.architecture
    kernels = NativeKernels() if kernels is None else kernels
    kv_format = kv_format or KV_FORMAT_OF[compute_dtype]
    builder = Builder(weights, kernels, compute_of or (lambda *modules: compute_dtype), kv_format)
    return Decoder(
        arch,
        kernels,
        compute_dtype,
        arch.default_context if context_length is None else context_length,
        builder.plan(),
        kv_format,
        prefill_block=prefill_block,
    )


class Builder:
    """Finds the weights of each part of a description and prepares them for the kernels."""

    def __init__(
        self,
        weights: Weights,
        kernels: Kernels,
        compute_of: Callable[..., str],
        kv_format: KVFormat,
    ) -> None:
        self.weights = weights
        self.kernels = kernels
        self.compute_of = compute_of
        self.kv_format = kv_format

    def plan(self) -> Plan:
        arch = self.weights.architecture
        return Plan(
            embedding=self.tensor(arch.embedding_name),
            layers=tuple(self.layer(index) for index in range(arch.layers)),
            norm=self.norm(arch.norm),
            head=self.projection(Linear(HEAD_MODULE, arch.vocab_size, arch.hidden_size)),
        )

    def layer(self, index: int) -> Layer:
        arch = self.weights.architecture
        block = arch.layer(index)
        table, page_layer = place_of(index, arch.windows)
        return Layer(
            attention_norm=self.norm(block.attention_norm),
            qkv=self.projection(*block.qkv),
            attention=AttentionShape(
                heads=arch.heads,
                kv_heads=arch.kv_heads,
                head_dim=arch.head_dim,
                window=arch.windows[index],
                scale=block.scale,
                kv_format=self.kv_format,
                query_norm=None if block.query_norm is None else self.norm(block.query_norm),
                key_norm=None if block.key_norm is None else self.norm(block.key_norm),
                table=table,
                page_layer=page_layer,
            ),
            output=self.projection(block.output),
            mlp_norm=self.norm(block.mlp_norm),
            gate_up=self.projection(*block.gate_up),
            activation=block.activation,
            down=self.projection(block.down),
        )

    def norm(self, norm: Norm) -> RMSNorm:
        weight = self.tensor(norm.weight).float().contiguous()
        return RMSNorm(weight, self.weights.architecture.norm_eps)

    def projection(self, *linears: Linear) -> Projection:
        """A projection of matrices that share an input, stacked by output."""
        matrices = [self.weights.weight(linear.weight) for linear in linears]
        names = [linear.bias for linear in linears]
        biases = [None if name is None else self.tensor(name) for name in names]
        compute = self.compute_of(*(linear.name for linear in linears))
        assert compute in COMPUTE_DTYPES  # the configuration and float_name see to it
        return self.kernels.projection(matrices, biases, compute)

    def tensor(self, name: str) -> Tensor:
        found = self.weights.weight(name)
        assert isinstance(found, Tensor), f"{name} must not be quantized"
        return found
