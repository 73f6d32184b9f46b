"""Qwen 2 and 2.5: Llama's block with biases on queries, keys and values (Yang et al., 2024)."""

from __future__ import annotations

from functools import partial

from neuralchat_lite.families.family import Family
from neuralchat_lite.families.llama import LLAMA_NAMES, llama_block
from neuralchat_lite.families.windows import window_in_late_layers

QWEN2 = Family(
    LLAMA_NAMES,
    partial(llama_block, qkv_bias=True),
    window_in_late_layers,
    max_positions=32768,
    kv_heads=32,
)
