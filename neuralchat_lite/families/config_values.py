"""Values of config.json, each checked as it is read.

A key that is missing or null has its default. Every function raises CheckpointError for an
invalid value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuralchat_lite.errors import CheckpointError

Config = Mapping[str, Any]


def wrong(key: str, rule: str, value: Any) -> CheckpointError:
    return CheckpointError(
        f"config.json: {key} must be {rule}, got {value!r}: download the file again"
    )


def positive(config: Config, key: str, default: int | None = None) -> int:
    """A positive integer; without a default the key must be there."""
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise wrong(key, "a positive integer", value)
    return value


def number(config: Config, key: str, default: float) -> float:
    """A positive number."""
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
        raise wrong(key, "a positive number", value)
    return float(value)


def flag(config: Config, key: str) -> bool:
    """true or false; false where the key is missing."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise wrong(key, "true or false", value)
    return bool(value)


def token_id(config: Config, key: str) -> int | None:
    value = config.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise wrong(key, "a token id", value)
    return value


def token_ids(config: Config, key: str) -> tuple[int, ...]:
    """One token id or a list of them; none where the key is missing."""
    value = config.get(key)
    if not isinstance(value, list):
        value = [value]
    ids = (token_id({key: entry}, key) for entry in value)
    return tuple(entry for entry in ids if entry is not None)
