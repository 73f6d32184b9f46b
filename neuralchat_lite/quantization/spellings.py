"""The values that options take: all spellings of each, its one name, and what is not supported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.quantization import QUANTIZERS
from neuralchat_lite.values import plain, shown, suggestion


class ByOwnName(Mapping[str, str]):
    """Maps each name of a table to itself: these names have one spelling only."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self.table = table

    def __getitem__(self, name: str) -> str:
        if name not in self.table:
            raise KeyError(name)
        return name

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)


# Spellings of a value -> its one name here. torch dtypes are looked up by their printed name.
INTEGER_WEIGHTS = {
    "int4": "int4",
    "int4_clip": "int4_clip",
    "int4_fullrange": "int4_fullrange",
    "int8": "int8",
    "torch.int8": "int8",
}
FLOATS = {
    "bf16": "bf16",
    "bfloat16": "bf16",
    "torch.bfloat16": "bf16",
    "fp32": "fp32",
    "float32": "fp32",
    "torch.float32": "fp32",
}
HALF = {"fp16": "fp16", "float16": "fp16", "torch.float16": "fp16"}
SPELLINGS: dict[str, Mapping[str, str]] = {
    "weight_dtype": INTEGER_WEIGHTS,
    "lm_head": INTEGER_WEIGHTS,
    "compute_dtype": {**FLOATS, "int8": "int8", "torch.int8": "int8", "auto": "auto"},
    "scale_dtype": {**FLOATS, **HALF},
    "scheme": {name: name for name in ("sym", "asym", "affine", "affine8")},
    "algorithm": ByOwnName(QUANTIZERS),
}
DEFAULTS: dict[str, str] = {
    "weight_dtype": "int4",
    "compute_dtype": "bf16",
    "scale_dtype": "fp16",
    "algorithm": "RTN",
    "lm_head": "int8",
}
GROUP_SIZES = (32, 64, 128, -1)

# Known names that are not supported, and what to do instead.
REFUSED_VALUES: dict[str, dict[str, str]] = {
    option: {
        name: f"is a float weight type, which has no kernel here: use {option}='int4' or 'int8'"
        for name in ("nf4", "fp4", "fp4_e2m1", "fp4_e2m1_bnb", "fp8", "fp8_e5m2", "fp8_e4m3")
    }
    for option in ("weight_dtype", "lm_head")
} | {
    "compute_dtype": {
        name: "has too small a range for activations: use compute_dtype='bf16'" for name in HALF
    },
}


def canonical(option: str, value: object) -> str:
    """The one name of a value, from any of its spellings."""
    if value is None:
        return DEFAULTS[option]
    name = str(value)
    found = SPELLINGS[option].get(name)
    if found is None and option == "algorithm":
        name = name.upper()
        found = SPELLINGS[option].get(name)
    if found is not None:
        return found
    reason = REFUSED_VALUES.get(option, {}).get(name)
    if reason is not None:
        raise ConfigError(f"{option}={shown(name)} {reason}")
    if option == "lm_head" and name in {**FLOATS, **HALF}:
        raise ConfigError(
            f"lm_head={shown(name)} is not an integer type: keep the head in the checkpoint's "
            "precision with modules_to_not_convert=['lm_head']"
        )
    valid = [spelling for spelling in SPELLINGS[option] if not spelling.startswith("torch.")]
    raise ConfigError(
        f"{option} must be one of {valid}, got {shown(value)}{suggestion(name, valid)}"
    )


def checked_group_size(value: object) -> int:
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int) or value not in GROUP_SIZES:
        raise ConfigError(
            f"group_size must be 32, 64, 128 or -1 (a whole row), got {shown(value)}: "
            "32 is the most accurate, 128 the smallest"
        )
    return value


# The options that an override may give, and how they are checked.
OF_A_MATRIX: dict[str, Callable[[Any], Any]] = {
    "weight_dtype": partial(canonical, "weight_dtype"),
    "group_size": checked_group_size,
    "scheme": partial(canonical, "scheme"),
    "scale_dtype": partial(canonical, "scale_dtype"),
}


def float_name(dtype: Any) -> str:
    """ "fp32" or "bf16" for any of their spellings. Raises ConfigError."""
    name = FLOATS.get(str(dtype))
    if name is None:
        raise ConfigError(
            f"dtype must be 'fp32' or 'bf16', got {shown(dtype)}: "
            "for int4 or int8 give a WeightOnlyQuantConfig"
        )
    return name
