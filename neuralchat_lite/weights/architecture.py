"""What config.json promises: the shapes of a Llama-shaped decoder and the names of its tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from neuralchat_lite.errors import CheckpointError, UnsupportedModelError

Role = Literal["linear", "lm_head", "embedding", "norm", "bias"]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the checkpoint: its Hugging Face name, its shape, and what it is for."""

    name: str
    shape: tuple[int, ...]
    role: Role


@dataclass(frozen=True)
class Family:
    """What a model type fixes outside its config.json."""

    qkv_bias: bool | None = None  # None: config.json's "attention_bias" says, and includes o_proj
    qk_norm: bool = False  # RMSNorm over head_dim on queries and keys
    window_needs_switch: bool = False  # "sliding_window" counts only with "use_sliding_window"


# A new family is one row, as long as its decoder layer is Llama's with these options.
FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(qkv_bias=True, window_needs_switch=True),
    "qwen3": Family(qk_norm=True, window_needs_switch=True),
}

ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Architecture:
    """A decoder as config.json describes it. Build it with `read_architecture`."""

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


def read_architecture(folder: Path) -> Architecture:
    """Read `config.json` (and the end-of-text ids of `generation_config.json`) of a model folder.

    Raises CheckpointError when a file is missing or a value impossible, UnsupportedModelError
    when the model is of another shape than Llama's.
    """
    config = read_json(folder / "config.json")
    generation_path = folder / "generation_config.json"
    generation = read_json(generation_path) if generation_path.exists() else {}
    return parse_architecture(config, generation)


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing: a model folder needs it; download the model again, "
            "or check that the path is the folder with config.json"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}): download it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


def parse_architecture(
    config: Mapping[str, Any], generation: Mapping[str, Any] | None = None
) -> Architecture:
    """Turn the dictionaries of config.json and generation_config.json into an Architecture."""
    model_type = config.get("model_type")
    family = FAMILIES.get(str(model_type))
    if family is None:
        raise UnsupportedModelError(
            f"model_type {model_type!r} is not supported: expected one of {sorted(FAMILIES)}"
        )
    refuse_what_we_cannot_run(config)

    layers = positive(config, "num_hidden_layers")
    heads = positive(config, "num_attention_heads")
    hidden = positive(config, "hidden_size")
    kv_heads = positive(config, "num_key_value_heads", default=heads)
    head_dim = positive(config, "head_dim", default=hidden // heads)
    if heads % kv_heads:
        raise CheckpointError(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    if head_dim % 2:
        raise CheckpointError(f"head_dim {head_dim} is odd: rotary embedding pairs dimensions")
    attention_bias = bool(config.get("attention_bias", False))
    eos = (generation or {}).get("eos_token_id", config.get("eos_token_id"))
    eos_ids = () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)
    return Architecture(
        model_type=str(model_type),
        vocab_size=positive(config, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=positive(config, "intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        max_positions=positive(config, "max_position_embeddings", default=2048),
        windows=layer_windows(config, family, layers),
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
        o_bias=attention_bias and family.qkv_bias is None,
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=family.qk_norm,
        rope=rope_parameters(config),
        eos_ids=eos_ids,
        bos_id=config.get("bos_token_id"),
    )


def refuse_what_we_cannot_run(config: Mapping[str, Any]) -> None:
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModelError(f"hidden_act {activation!r} is not supported: expected 'silu'")
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "unknown")
        raise UnsupportedModelError(
            f"the checkpoint is already quantized ({method!r}): "
            "use the original bf16, fp16 or fp32 checkpoint"
        )


def positive(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"config.json: {key} must be a positive integer, got {value!r}")
    return value


def layer_windows(config: Mapping[str, Any], family: Family, layers: int) -> tuple[int | None, ...]:
    window = config.get("sliding_window")
    if window is None or (family.window_needs_switch and not config.get("use_sliding_window")):
        return (None,) * layers
    if not isinstance(window, int) or window < 1:
        raise CheckpointError(
            f"config.json: sliding_window must be null or a positive integer, got {window!r}"
        )
    kinds = config.get("layer_types")
    if kinds is None and family.window_needs_switch:
        first = config.get("max_window_layers", layers)  # layers below it attend to everything
        return tuple(window if layer >= first else None for layer in range(layers))
    if kinds is None:
        return (window,) * layers
    if len(kinds) != layers:
        raise CheckpointError(
            f"config.json: layer_types has {len(kinds)} entries for {layers} layers"
        )
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise UnsupportedModelError(f"layer_types {sorted(unknown)} are not supported")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """One dictionary from both spellings: `rope_parameters`, or `rope_theta` + `rope_scaling`."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = dict(given)
    rope["rope_type"] = rope.pop("type", None) or rope.get("rope_type") or "default"
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    if rope["rope_type"] not in ROPE_TYPES:
        raise UnsupportedModelError(
            f"rope_type {rope['rope_type']!r} is not supported: expected one of {ROPE_TYPES}"
        )
    if config.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UnsupportedModelError("partial_rotary_factor other than 1.0 is not supported")
    return rope
