"""Codes of ours as blocks of GGUF: the inverse of `blocks`, where a type holds them exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from neuralchat_lite.checkpoints.gguf.blocks import BLOCK_TYPES, GROUP, Bytes, Codes, Setting

# Setting -> the type that holds it.
WRITTEN = {BLOCK_TYPES[kind].setting: kind for kind in ("Q8_0", "Q4_0", "Q4_1")}


def exact_type(weight_dtype: str, scheme: str) -> str | None:
    """The type that holds such codes with scales in fp16; None where there is none."""
    return WRITTEN.get(Setting(weight_dtype, scheme, "fp16"))


def as_halves(values: npt.NDArray[Any]) -> npt.NDArray[np.float16] | None:
    """Scales or minima in fp16; None where that would change one."""
    with np.errstate(over="ignore"):
        found = values.astype(np.float16)
    return found if np.array_equal(found.astype(values.dtype), values) else None


def encoded(codes: Codes, kind: str) -> Bytes:
    """[rows, bytes of a row] of blocks of a type of WRITTEN.

    codes: with scales and minima in fp16, one for each group of 32 columns
    """
    blocks = codes.codes.view(np.uint8).reshape(-1, GROUP)
    if BLOCK_TYPES[kind].setting.weight_dtype == "int4":
        blocks = blocks[:, : GROUP // 2] | (blocks[:, GROUP // 2 :] << np.uint8(4))
    beside = [values for values in (codes.scales, codes.minima) if values is not None]
    halves = [np.ascontiguousarray(each).reshape(-1, 1).view(np.uint8) for each in beside]
    whole: Bytes = np.concatenate([*halves, blocks], axis=1).reshape(len(codes.codes), -1)
    return whole
