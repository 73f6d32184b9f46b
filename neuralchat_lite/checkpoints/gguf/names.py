"""The names of tensors in GGUF files, and the order of their rows."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from neuralchat_lite.families.architecture import Sizes

# Hugging Face's name of a module -> GGUF's.
AROUND = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
ROPE_FACTORS = "rope_freqs.weight"


def gguf_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`."""
    found = LAYER.fullmatch(name)
    if found is not None:
        layer, module, kind = found.groups()
        return f"blk.{layer}.{IN_LAYER[module]}.{kind}"
    module, _, kind = name.rpartition(".")
    return f"{AROUND[module]}.{kind}"


def rotated_heads(name: str, sizes: Sizes) -> int | None:
    """The number of heads of a tensor whose rows llama.cpp reorders; None for all others."""
    heads = {"q_proj": sizes.heads, "k_proj": sizes.kv_heads}
    return heads.get(name.split(".")[-2])


def row_order(rows: int, heads: int) -> npt.NDArray[np.intp]:
    """Where each row of Hugging Face's order lies in a Llama's query or key matrix.

    llama.cpp rotates neighbouring rows, Hugging Face those that are half a head apart. So the
    conversion interleaves the two halves of each head, and this takes them apart again.
    """
    pairs = np.arange(rows, dtype=np.intp).reshape(heads, rows // heads // 2, 2)
    order: npt.NDArray[np.intp] = pairs.swapaxes(1, 2).reshape(-1)
    return order


def reordered(rows: npt.NDArray[Any], heads: int | None) -> npt.NDArray[Any]:
    """Rows, or values of a bias, in Hugging Face's order."""
    return rows if heads is None else rows[row_order(len(rows), heads)]
