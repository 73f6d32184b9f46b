"""The archived intel-extension-for-transformers 1.4.2 in its own environment: round to nearest
with QBits kernels."""

from __future__ import annotations

from typing import Any

from neuralchat_lite.engines.engine import Precision, Request, quantized_precision
from neuralchat_lite.engines.remote import RemoteEngine, open_in_environment
from neuralchat_lite.errors import ConfigError, EngineError
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig

NAME = "itrex"
# ITREX's own default; QBits has bf16 only where there is AMX.
DEFAULT = {"weight_dtype": "int4", "compute_dtype": "fp32"}
HONOURED: dict[str, tuple[Any, ...]] = {
    "weight_dtype": ("int4", "int8"),  # its int4_fullrange computes what int4 does
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
            "WeightOnlyQuantConfig, or use engine='ipex' or 'torch'"
        )
    config = WeightOnlyQuantConfig(**(DEFAULT if request.asked is None else request.asked))
    precision = quantized_precision(NAME, config, HONOURED)
    refuse_beyond_window(request)
    refuse_ragged_groups(request, precision)
    try:
        return open_in_environment(NAME, request, precision)
    except EngineError as error:
        if "AMX" in str(error):
            raise EngineError(f"{error}: choose compute_dtype='fp32' or 'int8'") from error
        raise


def refuse_beyond_window(request: Request) -> None:
    """transformers 4.41 gives other logits than later versions once a sliding window is full."""
    window = min((w for w in request.architecture.windows if w is not None), default=None)
    if window is not None and request.context_length > window:
        raise ConfigError(
            f"engine {NAME!r} has a transformers that gets sliding windows wrong, and the context "
            f"of {request.context_length} exceeds the window of {window}: load with "
            f"context_length={window}"
        )


def refuse_ragged_groups(request: Request, precision: Precision) -> None:
    """QBits has been seen to compute something else where a group is not full, unless weights are
    int8 and the rest is in floats."""
    options = precision.options
    assert options is not None
    kind = (options["weight_dtype"], options["compute_dtype"])
    if kind in (("int8", "fp32"), ("int8", "bf16")):
        return
    group = 32 if options["group_size"] == -1 else options["group_size"]
    for spec in request.architecture.tensors():
        if spec.role == "linear" and spec.shape[1] % group:
            raise ConfigError(
                f"engine {NAME!r} computes {kind[0]} weights in {kind[1]} wrongly where columns "
                f"are no multiple of {group}, and {spec.name} has {spec.shape[1]}: use "
                "weight_dtype='int8' with compute_dtype='fp32', or engine='native'"
            )
