"""How weights become codes: the configuration, and the algorithms.

A new algorithm is one file here and one row of QUANTIZERS.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neuralchat_lite.quantization.calibration import Calibration
    from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
    from neuralchat_lite.quantization.quantizer import Quantizer

# Name in WeightOnlyQuantConfig -> the class that implements the `Quantizer` protocol. It is
# made from a configuration.
QUANTIZERS = {
    "RTN": "neuralchat_lite.quantization.nearest:RoundToNearest",
    "GPTQ": "neuralchat_lite.quantization.gptq:GPTQuantizer",
    "AUTOROUND": "neuralchat_lite.quantization.autoround:AutoRound",
    "AWQ": "neuralchat_lite.quantization.awq:ActivationAware",
    "TEQ": "neuralchat_lite.quantization.teq:TrainableEquivalent",
    "HQQ": "neuralchat_lite.quantization.hqq:HalfQuadratic",
}


def open_quantizer(
    config: WeightOnlyQuantConfig, calibration: Calibration | None = None
) -> Quantizer:
    """The quantizer that a configuration names. Raises ConfigError if a package is missing, or
    calibration texts are missing or of no use."""
    module, _, name = QUANTIZERS[config.algorithm].partition(":")
    quantizer: Quantizer = getattr(import_module(module), name)(config)
    quantizer.calibrate_with(calibration)
    return quantizer
