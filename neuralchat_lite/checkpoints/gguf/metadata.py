"""config.json and generation_config.json from the metadata of a GGUF file.

The values are checked where every config.json is, in `families`; what GGUF alone can say is checked
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from neuralchat_lite.checkpoints.gguf.header import GGUFTensor
from neuralchat_lite.checkpoints.gguf.values import Metadata
from neuralchat_lite.checkpoints.gguf.vocabulary import Vocabulary
from neuralchat_lite.errors import CheckpointError, UnsupportedModelError
from neuralchat_lite.values import shown

EMBEDDING = "token_embd.weight"


@dataclass(frozen=True)
class Kind:
    """A value of `general.architecture`.

    model_type: in config.json
    class_name: of transformers
    interleaved: whether the rows of queries and keys are reordered, see `names.row_order`
    """

    model_type: str
    class_name: str
    interleaved: bool = False


ARCHITECTURES = {
    "llama": Kind("llama", "LlamaForCausalLM", interleaved=True),  # Mistral and SmolLM too
    "qwen2": Kind("qwen2", "Qwen2ForCausalLM"),
    "qwen3": Kind("qwen3", "Qwen3ForCausalLM"),
}
# config.json's key -> the end of GGUF's, behind the architecture.
WHOLE = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
# What Llama 3 was trained with; files have the factors that follow from them.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3_POSITIONS = 8192


def kind_of(metadata: Metadata) -> Kind:
    """Raises UnsupportedModelError for an architecture without a row, and what is no model."""
    what = metadata.text("general.type")
    if what not in (None, "model"):
        raise UnsupportedModelError(
            f"{metadata.file} holds {shown(what)} (general.type), expected a model: give the file "
            "of the model"
        )
    parts = metadata.whole("split.count")
    if parts is not None and parts > 1:
        raise UnsupportedModelError(
            f"{metadata.file} is one of {parts} parts: join them with `llama-gguf-split --merge`, "
            "and give the whole file"
        )
    name = metadata.text("general.architecture")
    kind = ARCHITECTURES.get(str(name))
    if kind is None:
        raise UnsupportedModelError(
            f"{metadata.file}: general.architecture {shown(name)} is not supported: expected one "
            f"of {', '.join(sorted(ARCHITECTURES))}; use another model"
        )
    return kind


def config_of(
    metadata: Metadata,
    tensors: Mapping[str, GGUFTensor],
    vocabulary: Vocabulary,
    rope_factors: npt.NDArray[np.float32] | None,
) -> dict[str, Any]:
    """config.json. `families.config_json.parse_architecture` checks it.

    rope_factors: [head_dim / 2] what frequencies are divided by; None where the file has none
    Raises CheckpointError or UnsupportedModelError.
    """
    kind, name = kind_of(metadata), metadata.text("general.architecture")

    def key(end: str) -> str:
        return f"{name}.{end}"

    config: dict[str, Any] = {"model_type": kind.model_type, "architectures": [kind.class_name]}
    for option, end in WHOLE.items():
        config[option] = metadata.whole(key(end))
        if config[option] is None:
            raise metadata.wrong(key(end), "a whole number")
    kv_heads = metadata.whole(key("attention.head_count_kv"))
    config["num_key_value_heads"] = config["num_attention_heads"] if kv_heads is None else kv_heads
    config["head_dim"] = head_dim(metadata, key, config)
    eps = metadata.number(key("attention.layer_norm_rms_epsilon"))
    if eps is None:
        raise metadata.wrong(key("attention.layer_norm_rms_epsilon"), "a number")
    config["rms_norm_eps"] = shortest(eps)
    experts = metadata.whole(key("expert_count"))
    if experts:
        raise UnsupportedModelError(
            f"{metadata.file} has {experts} experts ({key('expert_count')}), and mixtures of "
            "experts are not supported: use a dense model"
        )
    if EMBEDDING not in tensors or len(tensors[EMBEDDING].shape) != 2:
        raise CheckpointError(
            f"{metadata.file} lacks the embedding {EMBEDDING}: download the file again"
        )
    config["vocab_size"] = tensors[EMBEDDING].shape[0]
    config["tie_word_embeddings"] = "output.weight" not in tensors
    config["hidden_act"] = "silu"
    biased = "blk.0.attn_output.bias" if kind.model_type == "qwen3" else "blk.0.attn_q.bias"
    config["attention_bias"] = biased in tensors
    config["mlp_bias"] = "blk.0.ffn_gate.bias" in tensors
    config |= rope(metadata, key, config, rope_factors)
    ends = vocabulary.ends()
    config["bos_token_id"] = vocabulary.named.get("bos")
    config["eos_token_id"] = ends if len(ends) != 1 else ends[0]
    config["pad_token_id"] = vocabulary.named.get("pad")
    return {option: value for option, value in config.items() if value is not None}


def head_dim(metadata: Metadata, key: Any, config: Mapping[str, Any]) -> int:
    """The size of a head. Raises UnsupportedModelError where parts of it differ."""
    heads = max(config["num_attention_heads"], 1)
    given = metadata.whole(key("attention.key_length"))
    size = config["hidden_size"] // heads if given is None else given
    for end in ("attention.value_length", "rope.dimension_count"):
        other = metadata.whole(key(end))
        if other is not None and other != size:
            raise UnsupportedModelError(
                f"{metadata.file}: {key(end)} is {other}, but keys have {size}: use a model whose "
                "keys and values are of one size and rotated as a whole"
            )
    return size


def rope(
    metadata: Metadata,
    key: Any,
    config: Mapping[str, Any],
    factors: npt.NDArray[np.float32] | None,
) -> dict[str, Any]:
    """The rotary embedding in config.json's words."""
    theta = metadata.number(key("rope.freq_base"))
    found: dict[str, Any] = {"rope_theta": 10000.0 if theta is None else shortest(theta)}
    kind = metadata.text(key("rope.scaling.type"))
    factor = metadata.number(key("rope.scaling.factor"))
    if factor is None:  # its older name, of linear scaling alone
        factor = metadata.number(key("rope.scale_linear"))
        kind = kind or (None if factor in (None, 0, 1) else "linear")
    original = metadata.whole(key("rope.scaling.original_context_length"))
    if factors is not None:
        if kind not in (None, "none"):
            raise UnsupportedModelError(
                f"{metadata.file} has both factors of the rotary embedding and scaling "
                f"{shown(kind)}: use a model with one of them"
            )
        found["rope_scaling"] = llama3(metadata, config, found["rope_theta"], factors, original)
    elif kind not in (None, "none"):
        scaling = {"rope_type": kind, "factor": factor}
        scaling["attention_factor"] = metadata.number(key("rope.scaling.attn_factor"))
        scaling["original_max_position_embeddings"] = original
        found["rope_scaling"] = {name: value for name, value in scaling.items() if value}
    return found


def llama3(
    metadata: Metadata,
    config: Mapping[str, Any],
    theta: float,
    factors: npt.NDArray[np.float32],
    original: int | None,
) -> dict[str, Any]:
    """Llama 3's scaling, whose factors for each pair of dimensions these are.

    Raises UnsupportedModelError for other factors.
    """
    dim = config["head_dim"]
    scaling = {
        "rope_type": "llama3",
        "factor": round(float(factors.max()), 4),
        **LLAMA3,
        "original_max_position_embeddings": original or LLAMA3_POSITIONS,
    }
    frequencies = theta ** -(np.arange(0, dim, 2) / dim)
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    share = np.clip((turns - low) / (high - low), 0, 1)
    expected = 1 / ((1 - share) / scaling["factor"] + share)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
        raise UnsupportedModelError(
            f"{metadata.file}: rope_freqs.weight has factors {shown(factors[:4].tolist())} ..., "
            f"expected those of Llama 3 (factor {scaling['factor']}): use the original checkpoint"
        )
    return scaling


def shortest(value: float) -> float:
    """The shortest number with the same fp32 value: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))
