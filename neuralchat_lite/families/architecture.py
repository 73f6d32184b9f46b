"""The shapes of a Llama-shaped decoder, and the names of its tensors. config_json.py reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from neuralchat_lite.errors import ConfigError

Role = Literal["linear", "lm_head", "embedding", "norm", "bias"]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the checkpoint: its Hugging Face name, its shape, and what it is for."""

    name: str
    shape: tuple[int, ...]
    role: Role

    @property
    def module(self) -> str:
        """Its module. A tied head is "lm_head", though its weight is the embedding's."""
        return "lm_head" if self.role == "lm_head" else self.name.rpartition(".")[0]

    @property
    def is_matrix(self) -> bool:
        """Whether it is multiplied with activations, and so may be quantized."""
        return self.role in ("linear", "lm_head")


@dataclass(frozen=True)
class Architecture:
    """A decoder as config.json describes it. `config_json.read_architecture` makes it."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    max_positions: int
    windows: tuple[int | None, ...]  # per layer: how many positions a query sees, itself included
    tied: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    rope: Mapping[str, Any]  # "rope_type", "rope_theta" and that type's own parameters
    eos_ids: tuple[int, ...]
    bos_id: int | None

    @property
    def query_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def default_context(self) -> int:
        """Positions to use unless asked otherwise.

        A sliding-window model is trained on about two windows (Mistral-7B: window 4096,
        context 8192) whatever its position limit says.
        """
        window = max((w for w in self.windows if w is not None), default=None)
        return self.max_positions if window is None else min(self.max_positions, 2 * window)

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor that the decoder needs, in the order in which a token meets them."""
        hidden, mlp = self.hidden_size, self.intermediate_size
        yield TensorSpec("model.embed_tokens.weight", (self.vocab_size, hidden), "embedding")
        for layer in range(self.layers):
            block = f"model.layers.{layer}"
            projections = (
                ("self_attn.q_proj", self.query_size, hidden, self.qkv_bias),
                ("self_attn.k_proj", self.kv_size, hidden, self.qkv_bias),
                ("self_attn.v_proj", self.kv_size, hidden, self.qkv_bias),
                ("self_attn.o_proj", hidden, self.query_size, self.o_bias),
                ("mlp.gate_proj", mlp, hidden, self.mlp_bias),
                ("mlp.up_proj", mlp, hidden, self.mlp_bias),
                ("mlp.down_proj", hidden, mlp, self.mlp_bias),
            )
            yield TensorSpec(f"{block}.input_layernorm.weight", (hidden,), "norm")
            if self.qk_norm:
                yield TensorSpec(f"{block}.self_attn.q_norm.weight", (self.head_dim,), "norm")
                yield TensorSpec(f"{block}.self_attn.k_norm.weight", (self.head_dim,), "norm")
            yield TensorSpec(f"{block}.post_attention_layernorm.weight", (hidden,), "norm")
            for name, rows, cols, bias in projections:
                yield TensorSpec(f"{block}.{name}.weight", (rows, cols), "linear")
                if bias:
                    yield TensorSpec(f"{block}.{name}.bias", (rows,), "bias")
        yield TensorSpec("model.norm.weight", (hidden,), "norm")
        # A tied head is the embedding; it is still its own matrix once quantized.
        yield TensorSpec(
            "model.embed_tokens.weight" if self.tied else "lm_head.weight",
            (self.vocab_size, hidden),
            "lm_head",
        )


def checked_context(arch: Architecture, length: int | None) -> int:
    """The positions to allow: `length`, or the model's default. Raises ConfigError."""
    if length is None:
        return arch.default_context
    if type(length) is not int or not 1 <= length <= arch.max_positions:
        raise ConfigError(
            "context_length must be an integer between 1 and the model's "
            f"{arch.max_positions} positions, got {length!r}"
        )
    return length
