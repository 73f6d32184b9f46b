"""From config.json to an Architecture: every value checked, and what cannot be run refused.

Where a key is missing or spelled in two ways, the model means what transformers makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from neuralchat_lite.errors import CheckpointError, UnsupportedModelError
from neuralchat_lite.families.architecture import Architecture
from neuralchat_lite.files.json_file import read_json

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """What a model type fixes outside its config.json, and its defaults for missing keys.

    windows: "never": config.json's sliding_window means nothing; "always": it counts for every
        layer; "switch": it counts with use_sliding_window, from layer max_window_layers on
    qkv_bias: None: "attention_bias" says, and includes o_proj
    mlp_bias: config.json's "mlp_bias" counts
    qk_norm: RMSNorm over head_dim on queries and keys
    kv_heads: None: as many as heads
    head_dim: None: hidden_size / heads
    """

    windows: Literal["never", "always", "switch"]
    max_positions: int
    qkv_bias: bool | None = None
    mlp_bias: bool = False
    qk_norm: bool = False
    kv_heads: int | None = None
    head_dim: int | None = None


# A new family is one row, as long as its decoder layer is Llama's with these options.
FAMILIES: dict[str, Family] = {
    "llama": Family("never", 2048, mlp_bias=True),
    "mistral": Family("always", 131072, qkv_bias=False, kv_heads=8),
    "qwen2": Family("switch", 32768, qkv_bias=True, kv_heads=32),
    "qwen3": Family("switch", 32768, qk_norm=True, kv_heads=32, head_dim=128),
}
DEFAULT_WINDOW = 4096  # where a family has windows
DEFAULT_MAX_WINDOW_LAYERS = 28
DEFAULT_THETA = 10000.0

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
ORIGINAL = "original_max_position_embeddings"


def read_architecture(folder: Path) -> Architecture:
    """Read `config.json` (and the end-of-text ids of `generation_config.json`) of a model folder.

    Raises CheckpointError when a file is missing or a value impossible, UnsupportedModelError
    when the model is of another shape than Llama's.
    """
    config = read_json(folder / "config.json")
    generation_path = folder / "generation_config.json"
    generation = read_json(generation_path) if generation_path.exists() else {}
    return parse_architecture(config, generation)


def parse_architecture(config: Config, generation: Config | None = None) -> Architecture:
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
    kv_heads = positive(config, "num_key_value_heads", family.kv_heads or heads)
    head_dim = positive(config, "head_dim", family.head_dim or max(1, hidden // heads))
    if heads % kv_heads:
        raise CheckpointError(
            f"config.json: num_attention_heads {heads} is not a multiple of num_key_value_heads "
            f"{kv_heads}: download the file again"
        )
    if head_dim % 2:
        raise UnsupportedModelError(
            f"head_dim {head_dim} is odd, and rotary embedding pairs dimensions: "
            "use a model with an even one"
        )
    attention_bias = flag(config, "attention_bias")
    max_positions = positive(config, "max_position_embeddings", family.max_positions)
    return Architecture(
        model_type=str(model_type),
        vocab_size=positive(config, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=positive(config, "intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=number(config, "rms_norm_eps", 1e-6),
        max_positions=max_positions,
        windows=layer_windows(config, family, layers),
        tied=flag(config, "tie_word_embeddings"),
        qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
        o_bias=attention_bias and family.qkv_bias is None,
        mlp_bias=family.mlp_bias and flag(config, "mlp_bias"),
        qk_norm=family.qk_norm,
        rope=rope_parameters(config, max_positions),
        eos_ids=end_of_text(generation or {}) or end_of_text(config),
        bos_id=token_id(config, "bos_token_id"),
    )


def refuse_what_we_cannot_run(config: Config) -> None:
    activation = config.get("hidden_act") or "silu"
    if activation not in ("silu", "swish"):
        raise UnsupportedModelError(
            f"hidden_act {activation!r} is not supported: use a model with 'silu'"
        )
    method = config.get("quantization_config")
    if method is not None:
        name = method.get("quant_method") if isinstance(method, dict) else method
        raise UnsupportedModelError(
            f"the checkpoint is already quantized ({name!r}): "
            "use the original bf16, fp16 or fp32 checkpoint"
        )


def wrong(key: str, rule: str, value: Any) -> CheckpointError:
    return CheckpointError(
        f"config.json: {key} must be {rule}, got {value!r}: download the file again"
    )


def positive(config: Config, key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise wrong(key, "a positive integer", value)
    return value


def number(config: Config, key: str, default: float) -> float:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
        raise wrong(key, "a positive number", value)
    return float(value)


def flag(config: Config, key: str) -> bool:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise wrong(key, "true or false", value)
    return bool(value)


def token_id(config: Config, key: str) -> int | None:
    value = config.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise wrong(key, "a token id", value)
    return value


def end_of_text(config: Config) -> tuple[int, ...]:
    value = config.get("eos_token_id")
    if not isinstance(value, list):
        value = [value]
    ids = (token_id({"eos_token_id": entry}, "eos_token_id") for entry in value)
    return tuple(entry for entry in ids if entry is not None)


def layer_windows(config: Config, family: Family, layers: int) -> tuple[int | None, ...]:
    """What each layer's queries see. A key that says null means no window."""
    everything = (None,) * layers
    if family.windows == "never":
        return everything
    if family.windows == "switch" and not flag(config, "use_sliding_window"):
        return everything
    if config.get("sliding_window", DEFAULT_WINDOW) is None:
        return everything
    window = positive(config, "sliding_window", DEFAULT_WINDOW)
    kinds = config.get("layer_types")
    if kinds is not None:
        return tuple(window if sliding else None for sliding in sliding_layers(kinds, layers))
    first = 0
    if family.windows == "switch" and config.get("max_window_layers") != 0:
        first = positive(config, "max_window_layers", DEFAULT_MAX_WINDOW_LAYERS)
    return tuple(window if layer >= first else None for layer in range(layers))


def sliding_layers(kinds: Any, layers: int) -> list[bool]:
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise wrong("layer_types", f"a list of {layers}, one for each layer", kinds)
    unknown = {str(kind) for kind in kinds} - {"full_attention", "sliding_attention"}
    if unknown:
        raise UnsupportedModelError(
            f"layer_types {sorted(unknown)} are not supported: use a model whose layers are all "
            "full_attention or sliding_attention"
        )
    return [kind == "sliding_attention" for kind in kinds]


def rope_parameters(config: Config, max_positions: int) -> dict[str, Any]:
    """One flat dictionary from all spellings: `rope_scaling` beside `rope_theta`, which are
    older and win where both are there (people add them by hand), or `rope_parameters`.
    """
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, dict):
        raise wrong("rope_scaling", "an object", given)
    nested = [key for key, value in given.items() if isinstance(value, dict)]
    if nested:
        raise UnsupportedModelError(
            f"rope_parameters of their own for {nested} are not supported: use a model with the "
            "same rotary embedding in all layers"
        )
    rope = {key: value for key, value in given.items() if key != "type"}
    rope["rope_type"] = given.get("rope_type") or given.get("type") or "default"
    if rope["rope_type"] not in ROPE_TYPES:
        raise UnsupportedModelError(
            f"rope_type {rope['rope_type']!r} is not supported: expected one of {ROPE_TYPES}"
        )
    theta = number(config, "rope_theta", DEFAULT_THETA)
    rope["rope_theta"] = number(rope, "rope_theta", theta)
    for partial in (rope.get("partial_rotary_factor"), config.get("partial_rotary_factor")):
        if partial is not None and partial != 1:
            raise UnsupportedModelError(
                f"partial_rotary_factor {partial!r} is not supported: use a model that rotates "
                "all dimensions (1.0)"
            )
    if config.get(ORIGINAL) is not None:
        rope[ORIGINAL] = config[ORIGINAL]
    rope[ORIGINAL] = positive(rope, ORIGINAL, max_positions)
    return rope
