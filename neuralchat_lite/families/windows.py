"""Sliding windows: for each layer, how many positions a query sees, itself included (None: all).

A family chooses one of these rules.
"""

from __future__ import annotations

from collections.abc import Callable

from neuralchat_lite.errors import UnsupportedModelError
from neuralchat_lite.families.config_values import Config, flag, positive, wrong
from neuralchat_lite.values import shown

Windows = tuple[int | None, ...]
WindowRule = Callable[[Config, int], Windows]  # config.json and the number of layers

DEFAULT_WINDOW = 4096  # in families with windows
DEFAULT_MAX_WINDOW_LAYERS = 28


def no_window(config: Config, layers: int) -> Windows:
    """Every layer sees everything, whatever "sliding_window" says."""
    layer_kinds(config, layers)
    return (None,) * layers


def window_in_every_layer(config: Config, layers: int) -> Windows:
    """The "sliding_window" applies to every layer, or to those that "layer_types" names."""
    return windows_from(config, layers, lambda config: 0)


def window_in_late_layers(config: Config, layers: int) -> Windows:
    """With "use_sliding_window", layers from number "max_window_layers" on have a window, or
    those that "layer_types" names."""
    if not flag(config, "use_sliding_window"):
        return no_window(config, layers)
    return windows_from(config, layers, max_window_layers)


def max_window_layers(config: Config) -> int:
    if config.get("max_window_layers") == 0:
        return 0
    return positive(config, "max_window_layers", DEFAULT_MAX_WINDOW_LAYERS)


def windows_from(config: Config, layers: int, first_layer: Callable[[Config], int]) -> Windows:
    """Windows in the layers that "layer_types" names, or without it in those from `first_layer` on.

    If "sliding_window" is null, no layer has a window.
    """
    if config.get("sliding_window", DEFAULT_WINDOW) is None:
        if "sliding_attention" in (layer_kinds(config, layers) or ()):
            raise wrong("sliding_window", "a number, as layer_types has sliding_attention", None)
        return no_window(config, layers)
    window = positive(config, "sliding_window", DEFAULT_WINDOW)
    kinds = layer_kinds(config, layers)
    if kinds is not None:
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    first = first_layer(config)
    return tuple(window if layer >= first else None for layer in range(layers))


def layer_kinds(config: Config, layers: int) -> list[str] | None:
    """The "layer_types", None where there are none. They are checked even when no layer has a
    window, as in transformers. Raises CheckpointError or UnsupportedModelError."""
    kinds = config.get("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise wrong("layer_types", f"a list of {layers}, one for each layer", kinds)
    unknown = {str(kind) for kind in kinds} - {"full_attention", "sliding_attention"}
    if unknown:
        raise UnsupportedModelError(
            f"layer_types {shown(sorted(unknown))} are not supported: use a model whose layers "
            "are all full_attention or sliding_attention"
        )
    return kinds
