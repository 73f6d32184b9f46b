"""Shapes of models: the config.json of a random checkpoint, by name.

Speed depends on shapes and formats alone, so a random model of a shape measures it truly.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from neuralchat_lite.errors import ConfigError

MISTRAL: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_act": "silu",
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def shape(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return MISTRAL | {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


SHAPES = {
    "7b": shape(4096, 14336, 32, 32, 8),  # Mistral 7B, neural-chat-7b-v3
    "1b": shape(2048, 5632, 22, 32, 4),  # TinyLlama 1.1B
    "135m": shape(576, 1536, 30, 9, 3) | {"vocab_size": 49152},  # SmolLM2-135M
    "100m": shape(768, 2048, 12, 12, 4),
    "10m": shape(256, 768, 4, 8, 4),  # for trying the harness itself
}
ALIASES = {"mistral-7b": "7b"}


def shape_name(name: str) -> str:
    """The shape's own name. Raises ConfigError that lists all shapes for an unknown one."""
    found = ALIASES.get(name, name)
    if found not in SHAPES:
        known = ", ".join([*SHAPES, *ALIASES])
        raise ConfigError(f"there is no shape {name!r}: choose one of {known}")
    return found


def config_digest(config: dict[str, Any], seed: int = 0) -> str:
    """The sha256 of what decides every byte of a random checkpoint.

    json.dumps separates with ", " and ": " here, other than `neuralchat_lite.files.digests` does.
    Rows and folders of earlier runs have this digest, so it must stay as it is.
    """
    return hashlib.sha256(json.dumps([config, seed], sort_keys=True).encode()).hexdigest()
