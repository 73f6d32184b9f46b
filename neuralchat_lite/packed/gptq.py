"""A folder of GPTQ's format: words along the inputs, read by gptqmodel, transformers and vLLM.

Symmetric codes have version 1, which stores zero points less one and most programs read. Others
have version 2 (`checkpoint_format` "gptq_v2"), as version 1 has no zero point 0.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.packed.codes_folder import (
    Format,
    Levels,
    Setting,
    packed_words,
)


def parts(matrix: Levels, setting: Setting) -> dict[str, Tensor]:
    cols = matrix.levels.shape[1]
    size = cols if setting.group_size == -1 else setting.group_size
    zeros = matrix.zeros - 1 if setting.symmetric else matrix.zeros
    return {
        "qweight": packed_words(matrix.levels, setting.bits).t(),
        "qzeros": packed_words(zeros.t(), setting.bits),
        "scales": matrix.scales.t(),
        "g_idx": (torch.arange(cols) // size).to(torch.int32),
    }


def said(setting: Setting, unquantized: list[str], head: bool) -> dict[str, Any]:
    layers = [name for name in unquantized if "." in name]  # the head has a word of its own
    return {
        "quant_method": "gptq",
        "bits": setting.bits,
        "group_size": setting.group_size,
        "sym": setting.symmetric,
        "desc_act": False,
        "lm_head": head,
        "checkpoint_format": "gptq" if setting.symmetric else "gptq_v2",
        "pack_dtype": "int32",
        # Patterns of modules: a minus means that it has no codes.
        **({"dynamic": {f"-:^{re.escape(name)}$": {} for name in layers}} if layers else {}),
    }


def check(name: str, shape: tuple[int, ...], setting: Setting) -> None:
    rows, cols = shape
    count = 32 // setting.bits
    if rows % count or cols % count:
        raise ConfigError(
            f"{name} is {rows} x {cols}, but GPTQ packs {count} codes a word along both: export "
            "type='compressed-tensors', or keep it with modules_to_not_convert"
        )


GPTQ = Format("GPTQ", parts, said, check)
