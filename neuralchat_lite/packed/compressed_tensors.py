"""A folder of compressed-tensors, format "pack-quantized": words along the inputs, read by vLLM and
transformers. Zero points are packed along the outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from neuralchat_lite.packed.codes_folder import (
    Format,
    Levels,
    Setting,
    packed_words,
)


def filled(values: Tensor, bits: int) -> Tensor:
    """With zeros at the end of each row, up to whole words."""
    return pad(values, (0, -values.shape[1] % (32 // bits)))


def parts(matrix: Levels, setting: Setting) -> dict[str, Tensor]:
    found = {
        "weight_packed": packed_words(filled(matrix.levels, setting.bits), setting.bits),
        "weight_scale": matrix.scales,
        "weight_shape": torch.tensor(matrix.levels.shape),
    }
    if not setting.symmetric:
        zeros = packed_words(filled(matrix.zeros.t(), setting.bits), setting.bits)
        found["weight_zero_point"] = zeros.t()
    return found


def said(setting: Setting, unquantized: list[str], head: bool) -> dict[str, Any]:
    whole = setting.group_size == -1
    weights = {
        "num_bits": setting.bits,
        "type": "int",
        "symmetric": setting.symmetric,
        "strategy": "channel" if whole else "group",
        "group_size": None if whole else setting.group_size,
        "dynamic": False,
    }
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": unquantized,
    }


def check(name: str, shape: tuple[int, ...], setting: Setting) -> None:
    """Rows and columns of any number are padded."""


COMPRESSED_TENSORS = Format("compressed-tensors", parts, said, check)
