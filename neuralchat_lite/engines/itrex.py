"""The archived intel-extension-for-transformers 1.4.2 in its own environment: round to nearest
with QBits kernels."""

from __future__ import annotations

from typing import Any

from neuralchat_lite.engines.engine import Precision, Request, quantized_precision
from neuralchat_lite.engines.remote import RemoteEngine, open_in_environment
from neuralchat_lite.errors import ConfigError, EngineError
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig

NAME = "itrex"
# ITREX's own default. QBits supports bf16 only on CPUs with AMX.
DEFAULT = {"weight_dtype": "int4_clip", "compute_dtype": "fp32"}
HONOURED: dict[str, tuple[Any, ...]] = {
    "weight_dtype": ("int4_clip", "int8"),  # its int4_fullrange gives the results of int4_clip
    "scheme": ("sym", "asym"),
    "compute_dtype": ("fp32", "bf16", "int8"),
    "scale_dtype": ("fp32", "bf16"),
    "lm_head": ("fp32",),
    "modules_to_not_convert": ([], ["lm_head"]),  # it ignores other modules
}


def open_itrex(request: Request) -> RemoteEngine:
    """int4_clip with fp32 compute unless a quantization is given. Raises ConfigError or
    EngineError."""
    if request.dtype is not None:
        raise ConfigError(
            f"engine {NAME!r} always quantizes, but dtype={str(request.dtype)!r} asks for "
            "unquantized weights: give a WeightOnlyQuantConfig, or use engine='ipex' or 'torch'"
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
            f"engine {NAME!r} has a transformers with wrong sliding windows, and the context "
            f"of {request.context_length} exceeds the window of {window}: load with "
            f"context_length={window}"
        )


def refuse_ragged_groups(request: Request, precision: Precision) -> None:
    """In tests, QBits gave wrong results when a matrix ends with an incomplete group, except for
    int8 weights with fp32 or bf16 compute."""
    options = precision.options
    assert options is not None
    kind = (options["weight_dtype"], options["compute_dtype"])
    if kind in (("int8", "fp32"), ("int8", "bf16")):
        return
    group = 32 if options["group_size"] == -1 else options["group_size"]
    for spec in request.architecture.tensors():
        if spec.role == "linear" and spec.shape[1] % group:
            raise ConfigError(
                f"engine {NAME!r} gives wrong results for {kind[0]} weights in {kind[1]} when "
                f"columns are not a multiple of {group}, and {spec.name} has {spec.shape[1]}: use "
                "weight_dtype='int8' with compute_dtype='fp32', or engine='native'"
            )
