"""Qwen 3: Llama's block with RMSNorm on each head's queries and keys (Yang et al., 2025)."""

from __future__ import annotations

from neuralchat_lite.families.architecture import Sizes
from neuralchat_lite.families.block import Block
from neuralchat_lite.families.config_values import Config, flag
from neuralchat_lite.families.family import Family
from neuralchat_lite.families.llama import LLAMA_NAMES, llama_block
from neuralchat_lite.families.windows import window_in_late_layers


def block(config: Config, sizes: Sizes) -> Block:
    """With "attention_bias", the output projection has a bias too, as in Llama."""
    bias = flag(config, "attention_bias")
    return llama_block(config, sizes, qkv_bias=bias, output_bias=bias, qk_norm=True)


QWEN3 = Family(
    LLAMA_NAMES, block, window_in_late_layers, max_positions=32768, kv_heads=32, head_dim=128
)
