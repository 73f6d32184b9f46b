"""Mistral 7B: Llama's block with grouped heads and a sliding window (Jiang et al., 2023)."""

from __future__ import annotations

from neuralchat_lite.families.family import Family
from neuralchat_lite.families.llama import LLAMA_NAMES, llama_block
from neuralchat_lite.families.windows import window_in_every_layer

MISTRAL = Family(LLAMA_NAMES, llama_block, window_in_every_layer, max_positions=131072, kv_heads=8)
