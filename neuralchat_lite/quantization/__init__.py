"""How weights become codes: the configuration, and the algorithms.

An algorithm is a file here and a row of QUANTIZERS.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
    from neuralchat_lite.quantization.quantizer import Quantizer

# Name in WeightOnlyQuantConfig -> the class, made from a configuration, that keeps the `Quantizer`
# protocol.
QUANTIZERS = {
    "RTN": "neuralchat_lite.quantization.rtn:RoundToNearest",
}


def open_quantizer(config: WeightOnlyQuantConfig) -> Quantizer:
    """The quantizer that a configuration names. Raises ConfigError where it lacks a package."""
    module, _, name = QUANTIZERS[config.algorithm].partition(":")
    quantizer: Quantizer = getattr(import_module(module), name)(config)
    return quantizer
