"""The archived intel-extension-for-transformers 1.4.2 in its own environment: round to nearest
with QBits kernels."""

from __future__ import annotations

from typing import Any

from neuralchat_lite.engines.engine import Request, quantized_precision
from neuralchat_lite.engines.remote import RemoteEngine, open_in_environment
from neuralchat_lite.errors import ConfigError, EngineError

NAME = "itrex"
# ITREX's own default; QBits has bf16 only where there is AMX.
DEFAULT = {"weight_dtype": "int4", "compute_dtype": "fp32"}
HONOURED: dict[str, tuple[Any, ...]] = {
    "weight_dtype": ("int4", "int4_fullrange", "int8"),
    "compute_dtype": ("fp32", "bf16", "int8"),
    "scale_dtype": ("fp32", "bf16"),
    "lm_head": ("fp32",),
    "modules_to_not_convert": ([], ["lm_head"]),  # the rest is ignored there
}


def open_itrex(request: Request) -> RemoteEngine:
    """int4 with fp32 compute unless a quantization is given. Raises ConfigError or EngineError."""
    if request.dtype is not None:
        raise ConfigError(
            f"engine {NAME!r} quantizes, and dtype={str(request.dtype)!r} means not to: give a "
            " WeightOnlyQuantConfig, or use engine='ipex' or 'torch'"
        )
    precision = quantized_precision(
        NAME, DEFAULT if request.asked is None else request.asked, HONOURED
    )
    try:
        return open_in_environment(NAME, request, precision)
    except EngineError as error:
        if "AMX" in str(error):
            raise EngineError(f"{error}: choose compute_dtype='fp32' or 'int8'") from error
        raise
