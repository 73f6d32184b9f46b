"""Values of config.json, each checked as it is read.

A key that is missing or null has its default. Every function raises CheckpointError for an
invalid value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.values import shown

Config = Mapping[str, Any]

LARGEST = 2**31 - 1  # the kernels count in 32 bits
SMALLEST = 1e-30  # its reciprocal is still a number in fp32


def wrong(key: str, rule: str, value: Any, file: str = "config.json") -> CheckpointError:
    return CheckpointError(
        f"{file}: {key} must be {rule}, got {shown(value)}: download the file again"
    )


def is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def positive(
    config: Config, key: str, default: int | None = None, *, largest: int = LARGEST
) -> int:
    """A positive integer; without a default the key must be there."""
    value = config.get(key)
    if value is None:
        value = default
    if not is_integer(value) or value < 1:
        raise wrong(key, "a positive integer", value)
    if value > largest:
        raise wrong(key, f"at most {largest}", value)
    return value


def number(config: Config, key: str, default: float | None = None, *, above: float = 0) -> float:
    """A number above another one; without a default the key must be there."""
    value = config.get(key)
    if value is None:
        value = default
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not max(above, SMALLEST) < value < 1e30
    ):
        raise wrong(key, f"a positive number{f' above {above}' if above else ''}", value)
    return float(value)


def flag(config: Config, key: str) -> bool:
    """true or false; false where the key is missing."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise wrong(key, "true or false", value)
    return bool(value)


def token_id(config: Config, key: str, file: str = "config.json") -> int | None:
    value = config.get(key)
    if value is not None and (not is_integer(value) or value < 0):
        raise wrong(key, "a token id", value, file)
    return value


def token_ids(config: Config, key: str, file: str = "config.json") -> tuple[int, ...]:
    """One token id or a list of them; none where the key is missing."""
    value = config.get(key)
    if not isinstance(value, list):
        value = [value]
    ids = (token_id({key: entry}, key, file) for entry in value)
    return tuple(entry for entry in ids if entry is not None)
