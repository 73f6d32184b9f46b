"""The description of a model family: what config.json leaves to the model type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from neuralchat_lite.families.architecture import Names, Sizes
from neuralchat_lite.families.block import Block
from neuralchat_lite.families.config_values import Config
from neuralchat_lite.families.windows import WindowRule


@dataclass(frozen=True)
class Family:
    """What a model type fixes outside its config.json, and its defaults for missing keys.

    names: of the modules around the blocks
    block: config.json and the sizes read from it -> the family's block
    windows: config.json and the number of layers -> the window of each layer
    max_positions: default of "max_position_embeddings"
    kv_heads: default of "num_key_value_heads"; None: as many as heads
    head_dim: default of "head_dim"; None: hidden_size / heads
    """

    names: Names
    block: Callable[[Config, Sizes], Block]
    windows: WindowRule
    max_positions: int
    kv_heads: int | None = None
    head_dim: int | None = None
