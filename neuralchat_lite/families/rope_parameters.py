"""The rotary embedding's parameters: one flat dictionary from all the spellings in config.json.

`models.rope` turns them into angles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from neuralchat_lite.errors import CheckpointError, UnsupportedModelError
from neuralchat_lite.families.config_values import (
    Config,
    flag,
    number,
    positive,
    wrong,
)
from neuralchat_lite.values import shown

DEFAULT_THETA = 10000.0
ORIGINAL = "original_max_position_embeddings"


def rope_parameters(config: Config, max_positions: int) -> dict[str, Any]:
    """`rope_type`, `rope_theta`, `original_max_position_embeddings` and that type's parameters.

    config.json has them in `rope_scaling` beside `rope_theta`, or in `rope_parameters`. The first
    two are older. They win when both spellings are there, because users add them by hand.

    Raises CheckpointError for an invalid value, UnsupportedModelError for a type that
    `models.rope` does not know, or when layers or dimensions differ in their rotation.
    """
    given = first_given(config, "rope_scaling", "rope_parameters")
    nested = [key for key, value in given.items() if isinstance(value, dict)]
    if nested:
        raise UnsupportedModelError(
            f"separate rope_parameters for {shown(nested)} are not supported: use a model with the "
            "same rotary embedding in all layers"
        )
    named = [given[key] for key in ("rope_type", "type") if given.get(key) is not None]
    kind = named[0] if named else "default"
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        raise UnsupportedModelError(
            f"rope_type {shown(kind)} is not supported: expected one of {tuple(ROPE_TYPES)}"
        )
    theta = number(config, "rope_theta", DEFAULT_THETA, above=1)
    rope = {"rope_type": kind, "rope_theta": number(given, "rope_theta", theta, above=1)}
    for partial in (given.get("partial_rotary_factor"), config.get("partial_rotary_factor")):
        if partial is not None and partial != 1:
            raise UnsupportedModelError(
                f"partial_rotary_factor {shown(partial)} is not supported: use a model that "
                "rotates all dimensions (1.0)"
            )
    trained = config if config.get(ORIGINAL) is not None else given
    rope[ORIGINAL] = positive(trained, ORIGINAL, max_positions)
    return rope | ROPE_TYPES[kind](given)


def first_given(config: Config, *keys: str) -> dict[str, Any]:
    """The first of these objects that is there and not empty."""
    for key in keys:
        given = config.get(key)
        if given is not None and not isinstance(given, dict):
            raise wrong(key, "an object", given)
        if given:
            return given
    return {}


def no_parameters(given: Config) -> dict[str, Any]:
    return {}


def factor_alone(given: Config) -> dict[str, Any]:
    return {"factor": number(given, "factor")}


def llama3_parameters(given: Config) -> dict[str, Any]:
    names = ("factor", "low_freq_factor", "high_freq_factor")
    found = {name: number(given, name) for name in names}
    if found["high_freq_factor"] <= found["low_freq_factor"]:
        raise crossed("llama3", "high_freq_factor", "low_freq_factor", found)
    return found


def yarn_parameters(given: Config) -> dict[str, Any]:
    """The two factors that scale cos and sin are None where they are missing or 0, as in
    transformers."""
    found: dict[str, Any] = {
        "factor": number(given, "factor"),
        "beta_fast": number(given, "beta_fast", 32.0),
        "beta_slow": number(given, "beta_slow", 1.0),
        "truncate": given.get("truncate") is None or flag(given, "truncate"),
    }
    for name in ("attention_factor", "mscale", "mscale_all_dim"):
        absent = given.get(name) is None or (name != "attention_factor" and given[name] == 0)
        found[name] = None if absent else number(given, name)
    if found["beta_fast"] <= found["beta_slow"]:
        raise crossed("yarn", "beta_fast", "beta_slow", found)
    return found


def crossed(kind: str, upper: str, lower: str, found: Config) -> CheckpointError:
    return CheckpointError(
        f"config.json: rope_type {kind!r} needs {upper} above {lower}, got {found[upper]} and "
        f"{found[lower]}: download the file again"
    )


# Rope type -> its own parameters as config.json has them -> the same, checked.
ROPE_TYPES: dict[str, Callable[[Config], dict[str, Any]]] = {
    "default": no_parameters,
    "linear": factor_alone,
    "llama3": llama3_parameters,
    "yarn": yarn_parameters,
}
