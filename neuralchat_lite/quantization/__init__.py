"""How weights become codes: the configuration, and the algorithms.

A new algorithm is one file here and one row of QUANTIZERS.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
    from neuralchat_lite.quantization.quantizer import Quantizer

# Name in WeightOnlyQuantConfig -> the class that implements the `Quantizer` protocol. It is
# made from a configuration.
QUANTIZERS = {
    "RTN": "neuralchat_lite.quantization.nearest:RoundToNearest",
}


def open_quantizer(config: WeightOnlyQuantConfig) -> Quantizer:
    """The quantizer that a configuration names. Raises ConfigError if a package is missing."""
    module, _, name = QUANTIZERS[config.algorithm].partition(":")
    quantizer: Quantizer = getattr(import_module(module), name)(config)
    return quantizer
