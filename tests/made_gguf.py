"""Small GGUF files with random weights, written by the `gguf` package, and what they mean.

The package quantizes and dequantizes. The rows of queries and keys are reordered as llama.cpp's
conversion does it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from neuralchat_lite.checkpoints.gguf.types import TYPE_SIZES
from neuralchat_lite.families.architecture import Architecture
from neuralchat_lite.families.config_json import parse_architecture

CONFIG = {
    "model_type": "llama",
    "vocab_size": 272,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "tie_word_embeddings": False,
}
PARTS = {
    "embed_tokens": "token_embd", "lm_head": "output", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "q_proj": "attn_q", "k_proj": "attn_k",
    "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up",
    "down_proj": "ffn_down", "q_norm": "attn_q_norm", "k_norm": "attn_k_norm",
}  # fmt: skip
# Places of fp16 numbers in a block, which random bytes would make infinite.
HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
END = "<|im_end|>"
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"


def random_blocks(kind: str, rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """[rows, bytes of a row]: every code and every bit of a scale occurs."""
    values, size = TYPE_SIZES[kind]
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (rows * cols // values, size), dtype=np.uint8)
    # A k-quant has a scale of scales, up to 63 or 127.
    deviation = 2e-4 if kind.endswith("K") else 0.01
    for place in HALVES.get(kind, (0,)):
        scale = random.normal(0, deviation, len(blocks)).astype(np.float16)
        blocks[:, place : place + 2] = scale[:, None].view(np.uint8)
    return blocks.reshape(rows, -1)


def stored_name(name: str) -> str:
    words = name.split(".")
    if words[:2] == ["model", "norm"]:
        return "output_norm.weight"
    layer = f"blk.{words[2]}." if words[1] == "layers" else ""
    return f"{layer}{PARTS[words[-2]]}.{words[-1]}"


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Hugging Face's rows as llama.cpp's conversion writes them."""
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def taken_apart(rows: np.ndarray, heads: int) -> np.ndarray:
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def byte_tokens() -> list[str]:
    """GPT-2's letters for bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(others)}}
    return [letters[byte] for byte in range(256)]


def add_metadata(writer: Any, config: Mapping[str, Any], arch: Architecture) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(arch.head_dim)
    writer.add_value_length(arch.head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])


def add_vocabulary(writer: Any, size: int) -> None:
    tokens = [*byte_tokens(), "Ġt", "he", "Ġthe", "<s>", END]
    unused = [f"[unused{index}]" for index in range(size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*tokens, *unused])
    writer.add_token_types([1] * 259 + [3, 3] + [5] * len(unused))
    writer.add_token_merges(["Ġ t", "h e", "Ġt he"])
    writer.add_bos_token_id(259)
    writer.add_eos_token_id(260)
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)


def write_gguf(
    path: Path,
    type_of: Callable[[str], str],
    config: Mapping[str, Any] = CONFIG,
    *,
    change: Callable[[Any], None] = lambda writer: None,
    extra: Mapping[str, np.ndarray] = {},
) -> dict[str, torch.Tensor]:
    """Write a model of random weights. Returns them in fp32, by their Hugging Face names, as the
    package dequantizes them.

    type_of: GGUF's name of a matrix -> its type
    change: what is done to the `GGUFWriter` before the tensors
    """
    import gguf

    arch = parse_architecture(config)
    writer = gguf.GGUFWriter(path, config["model_type"])
    add_metadata(writer, config, arch)
    add_vocabulary(writer, config["vocab_size"])
    change(writer)
    found = {}
    heads = {"q_proj": arch.heads, "k_proj": arch.kv_heads} if arch.model_type == "llama" else {}
    for number, spec in enumerate(arch.tensors()):
        if arch.tied and spec.role == "lm_head":
            continue
        random = np.random.default_rng(number)
        scale, shift = (0.1, 1.0) if spec.role == "norm" else (0.05, 0.0)
        value = random.normal(shift, scale, spec.shape).astype(np.float32)
        name = stored_name(spec.name)
        count = heads.get(spec.name.split(".")[-2])
        value = value if count is None else interleaved(value, count)
        kind = type_of(name) if len(spec.shape) == 2 else "F32"
        quantized = gguf.GGMLQuantizationType[kind]
        if kind in ("Q4_K", "Q5_K", "Q6_K"):
            raw = random_blocks(kind, *spec.shape, seed=number)
        else:
            raw = gguf.quants.quantize(value, quantized)
        writer.add_tensor(name, raw, raw_dtype=quantized)
        meant = gguf.quants.dequantize(raw, quantized).reshape(spec.shape).astype(np.float32)
        meant = meant if count is None else taken_apart(meant, count)
        found[spec.name] = torch.from_numpy(np.ascontiguousarray(meant))
    for name, value in extra.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


def write_folder(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    sidecars: Mapping[str, bytes],
    config: Mapping[str, Any] = CONFIG,
) -> Path:
    """The same model as a Hugging Face checkpoint in fp32."""
    folder.mkdir()
    for name, data in sidecars.items():
        (folder / name).write_bytes(data)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})
    return folder
