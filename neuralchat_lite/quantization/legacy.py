"""Options of intel-extension-for-transformers: accepted where nothing is lost, else refused."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.values import shown, suggestion

# Options of intel-extension-for-transformers that control its engines and calibration. None of
# them changes what is computed here.
WITHOUT_EFFECT = frozenset(
    (
        "use_ggml",
        "use_neural_speed",
        "use_llm_runtime",
        "low_bit_model",
        "use_quant",
        "use_gptq",
        "use_autoround",
        "use_double_quant",
        "double_quant_scale_dtype",
        "mse_range",
        "tokenizer",
        "calib_func",
        "calib_dataset",
        "calib_dataloader",
        "calib_iters",
        "calib_len",
        "calib_padding",
        "quant_method",
    )
)
# Values of these options that would change the weights there. They are refused.
UNMET_PROMISES: dict[str, tuple[bool, str]] = {
    "mse_range": (True, "searches clipping ranges, which is not implemented: leave it out"),
    "use_double_quant": (True, "quantizes scales, which is not implemented: leave it out"),
    "use_gptq": (True, "reads GPTQ checkpoints, which is not supported: use the original one"),
    "use_autoround": (True, "reads AutoRound files, which is not supported: use the original one"),
    "use_quant": (False, "means no quantization: load the model without a quantization config"),
}
RENAMED = {"llm_int8_skip_modules": "modules_to_not_convert"}


def accept_legacy(options: Mapping[str, Any], fields: Sequence[str]) -> list[str] | None:
    """Check options of intel-extension-for-transformers. Returns llm_int8_skip_modules if given.

    fields: the options of WeightOnlyQuantConfig, for errors
    """
    known = WITHOUT_EFFECT | RENAMED.keys()
    for option, value in options.items():
        if option not in known:
            raise ConfigError(
                f"{option!r} is not an option{suggestion(option, [*fields, *sorted(known)])}: "
                f"expected one of {list(fields)}"
            )
        promise, reason = UNMET_PROMISES.get(option, (None, ""))
        if promise is not None and value is not None and bool(value) is promise:
            raise ConfigError(f"{option}={shown(value)} {reason}")
    idle = sorted(WITHOUT_EFFECT & options.keys())
    if idle:
        # stacklevel 3: the line that called __init__, which called accept_legacy.
        warnings.warn(f"these options have no effect here: {', '.join(idle)}", stacklevel=3)
    return options.get("llm_int8_skip_modules")
