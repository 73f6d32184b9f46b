"""intel-extension-for-pytorch in its own environment: bf16 or fp32 through ipex.optimize, or its
weight-only quantization."""

from __future__ import annotations

from typing import Any

from neuralchat_lite.engines.engine import Request, float_precision, quantized_precision
from neuralchat_lite.engines.remote import RemoteEngine, open_in_environment
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig

NAME = "ipex"


def open_ipex(request: Request) -> RemoteEngine:
    """bf16 unless dtype or a quantization says otherwise. Raises ConfigError or EngineError."""
    if request.asked is None:
        precision = float_precision(NAME, request, default="bf16")
    else:
        config = WeightOnlyQuantConfig(**request.asked)
        honoured: dict[str, tuple[Any, ...]] = {
            "weight_dtype": ("int4_clip", "int8"),
            "scheme": ("sym", "asym"),
            "compute_dtype": ("bf16", "fp32", "int8"),
            "scale_dtype": ("fp32",),
            "lm_head": ("int8" if config.weight_dtype == "int8" else "int4_clip",),
            "modules_to_not_convert": ([],),
        }
        precision = quantized_precision(NAME, config, honoured)
    return open_in_environment(NAME, request, precision)
