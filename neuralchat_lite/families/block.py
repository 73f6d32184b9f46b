"""One block of a decoder as a description: its parts, their names in a checkpoint, their sizes.

A block is attention and then a gated MLP, each with a norm before it and added to what it read:

    x = x + output(attention(qkv(attention_norm(x))))
    x = x + down(activation(gate(y)) * up(y))          with y = mlp_norm(x)

Families differ in the fields below. `Architecture.tensors` derives from them the tensors that a
checkpoint must have, and `models.build` the layers that run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from neuralchat_lite.kernels.operations import Activation


@dataclass(frozen=True)
class Linear:
    """x @ weight.T + bias, where weight is [rows, cols] and bias, if there is one, [rows].

    name: of the module in the checkpoint, such as "self_attn.q_proj"
    """

    name: str
    rows: int
    cols: int
    has_bias: bool = False

    @property
    def weight(self) -> str:
        return f"{self.name}.weight"

    @property
    def bias(self) -> str | None:
        return f"{self.name}.bias" if self.has_bias else None

    def under(self, prefix: str) -> Linear:
        return replace(self, name=f"{prefix}.{self.name}")


@dataclass(frozen=True)
class Norm:
    """RMSNorm over `size` values, with a weight of as many. Its epsilon is the architecture's.

    name: of the module in the checkpoint, such as "input_layernorm"
    """

    name: str
    size: int

    @property
    def weight(self) -> str:
        return f"{self.name}.weight"

    def under(self, prefix: str) -> Norm:
        return replace(self, name=f"{prefix}.{self.name}")


@dataclass(frozen=True)
class Block:
    """The parts of a block, with names relative to it.

    qkv: queries, keys and values, stacked by output: three matrices, or one that holds all
    gate_up: gate and up, stacked by output: two matrices, or one that holds both
    scale: what scores are multiplied with before the softmax
    activation: of the gate
    query_norm, key_norm: over head_dim, before the rotary embedding; None if there is none
    """

    attention_norm: Norm
    qkv: tuple[Linear, ...]
    output: Linear
    scale: float
    mlp_norm: Norm
    gate_up: tuple[Linear, ...]
    down: Linear
    activation: Activation
    query_norm: Norm | None = None
    key_norm: Norm | None = None

    @property
    def norms(self) -> tuple[Norm, ...]:
        found = (self.attention_norm, self.query_norm, self.key_norm, self.mlp_norm)
        return tuple(norm for norm in found if norm is not None)

    @property
    def linears(self) -> tuple[Linear, ...]:
        return (*self.qkv, self.output, *self.gate_up, self.down)

    def under(self, prefix: str) -> Block:
        """The same block with full names, such as "model.layers.3.self_attn.q_proj"."""
        return replace(
            self,
            attention_norm=self.attention_norm.under(prefix),
            qkv=tuple(linear.under(prefix) for linear in self.qkv),
            output=self.output.under(prefix),
            mlp_norm=self.mlp_norm.under(prefix),
            gate_up=tuple(linear.under(prefix) for linear in self.gate_up),
            down=self.down.under(prefix),
            query_norm=self.query_norm and self.query_norm.under(prefix),
            key_norm=self.key_norm and self.key_norm.under(prefix),
        )
