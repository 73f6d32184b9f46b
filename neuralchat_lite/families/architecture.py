"""A decoder as a description: its sizes, its blocks, and the tensors that follow from them.

`config_json.read_architecture` makes it. Every name of a tensor that is read, checked or run comes
from here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.families.block import Block, Norm
from neuralchat_lite.values import plain, shown

Role = Literal["linear", "lm_head", "embedding", "norm", "bias"]

# This library's name of the output head in every family, also when the head is tied to the
# embedding. A quantized head is always a matrix of its own.
HEAD_MODULE = "lm_head"
HEAD = f"{HEAD_MODULE}.weight"


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the checkpoint: its Hugging Face name, its shape, and what it is for."""

    name: str
    shape: tuple[int, ...]
    role: Role

    @property
    def module(self) -> str:
        """Its module. The module of the head is "lm_head" in every family, also when the head is
        tied and its weight is the embedding's."""
        return HEAD_MODULE if self.role == "lm_head" else self.name.rpartition(".")[0]

    @property
    def is_matrix(self) -> bool:
        """Whether it is multiplied with activations, and so may be quantized."""
        return self.role in ("linear", "lm_head")


@dataclass(frozen=True)
class Names:
    """What a family calls the modules around its blocks.

    base: prefix of every name but the head's, such as "model."; a checkpoint that was saved
        without a head leaves it out
    embedding, norm: after `base`; the norm is the one before the head
    layers: after `base`; block i is "{layers}.{i}"
    ignored: endings of tensors that checkpoints may contain and that no decoder needs
    """

    base: str
    embedding: str
    layers: str
    norm: str
    head: str
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """The numbers from which all shapes follow."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def query_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Architecture(Sizes):
    """A decoder as its config.json and its family describe it.

    names, block: as the family has them; `layer` gives the block of one layer with full names
    windows: for each layer how many positions a query sees, itself included; None: all
    tied: the head is the embedding
    rope: "rope_type", "rope_theta" and that type's own parameters
    eos_ids: that end a text: those of generation_config.json, else of config.json
    stated_eos: file -> the ids that it gives
    """

    model_type: str
    names: Names
    block: Block
    norm_eps: float
    max_positions: int
    windows: tuple[int | None, ...]
    tied: bool
    rope: Mapping[str, Any]
    eos_ids: tuple[int, ...]
    bos_id: int | None
    stated_eos: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        qkv = sum(linear.rows for linear in self.block.qkv)
        assert qkv == self.query_size + 2 * self.kv_size, (qkv, self.query_size, self.kv_size)
        gate_up = sum(linear.rows for linear in self.block.gate_up)
        assert gate_up == 2 * self.intermediate_size, (gate_up, self.intermediate_size)
        assert len(self.windows) == self.layers, (self.windows, self.layers)

    @property
    def default_context(self) -> int:
        """The default number of positions.

        A sliding-window model is trained on about two windows (Mistral-7B: window 4096,
        context 8192) whatever its position limit says.
        """
        window = max((w for w in self.windows if w is not None), default=None)
        return self.max_positions if window is None else min(self.max_positions, 2 * window)

    @property
    def embedding_name(self) -> str:
        return f"{self.names.base}{self.names.embedding}.weight"

    @property
    def untied_head_name(self) -> str:
        """The stored name of a head that is a tensor of its own."""
        return f"{self.names.head}.weight"

    @property
    def norm(self) -> Norm:
        """The norm between the last layer and the head."""
        return Norm(f"{self.names.base}{self.names.norm}", self.hidden_size)

    def layer(self, index: int) -> Block:
        """The block of one layer, with full names."""
        return self.block.under(f"{self.names.base}{self.names.layers}.{index}")

    def products(self) -> Iterator[tuple[str, ...]]:
        """The modules of each product: matrices that share an input are multiplied together."""
        for index in range(self.layers):
            block = self.layer(index)
            for linears in (block.qkv, (block.output,), block.gate_up, (block.down,)):
                yield tuple(linear.name for linear in linears)
        yield (HEAD_MODULE,)

    def stored_name(self, name: str) -> str:
        """The name in the checkpoint. It differs for `HEAD` alone."""
        if name != HEAD:
            return name
        return self.embedding_name if self.tied else self.untied_head_name

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor that the decoder needs.

        The packed file keeps this order: in each layer the norms, then the matrices, each before
        its bias.
        """
        table = (self.vocab_size, self.hidden_size)
        yield TensorSpec(self.embedding_name, table, "embedding")
        for index in range(self.layers):
            block = self.layer(index)
            for norm in block.norms:
                yield TensorSpec(norm.weight, (norm.size,), "norm")
            for linear in block.linears:
                yield TensorSpec(linear.weight, (linear.rows, linear.cols), "linear")
                if linear.bias is not None:
                    yield TensorSpec(linear.bias, (linear.rows,), "bias")
        yield TensorSpec(self.norm.weight, (self.norm.size,), "norm")
        # A tied head is the embedding, but a quantized head is a matrix of its own.
        yield TensorSpec(self.stored_name(HEAD), table, "lm_head")


def checked_context(arch: Architecture, length: int | None) -> int:
    """The most positions: `length`, or the model's default. Raises ConfigError."""
    if length is None:
        return arch.default_context
    length = plain(length)
    if type(length) is not int or not 1 <= length <= arch.max_positions:
        raise ConfigError(
            "context_length must be an integer between 1 and the model's "
            f"{arch.max_positions} positions, got {shown(length)}"
        )
    return length
