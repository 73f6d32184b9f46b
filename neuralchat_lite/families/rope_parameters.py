"""The rotary embedding's parameters: one flat dictionary from all the spellings in config.json.

`models.rope` turns them into angles.
"""

from __future__ import annotations

from typing import Any

from neuralchat_lite.errors import UnsupportedModelError
from neuralchat_lite.families.config_values import Config, number, positive, wrong

DEFAULT_THETA = 10000.0
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
ORIGINAL = "original_max_position_embeddings"


def rope_parameters(config: Config, max_positions: int) -> dict[str, Any]:
    """`rope_type`, `rope_theta`, `original_max_position_embeddings` and that type's parameters.

    config.json has them in `rope_scaling` beside `rope_theta`, or in `rope_parameters`. The first
    two are older. They win when both spellings are there, because users add them by hand.

    Raises CheckpointError for an invalid value, UnsupportedModelError for a type that
    `models.rope` does not know, or when layers or dimensions differ in their rotation.
    """
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, dict):
        raise wrong("rope_scaling", "an object", given)
    nested = [key for key, value in given.items() if isinstance(value, dict)]
    if nested:
        raise UnsupportedModelError(
            f"separate rope_parameters for {nested} are not supported: use a model with the "
            "same rotary embedding in all layers"
        )
    rope = {key: value for key, value in given.items() if key != "type"}
    rope["rope_type"] = given.get("rope_type") or given.get("type") or "default"
    if rope["rope_type"] not in ROPE_TYPES:
        raise UnsupportedModelError(
            f"rope_type {rope['rope_type']!r} is not supported: expected one of {ROPE_TYPES}"
        )
    theta = number(config, "rope_theta", DEFAULT_THETA)
    rope["rope_theta"] = number(rope, "rope_theta", theta)
    for partial in (rope.get("partial_rotary_factor"), config.get("partial_rotary_factor")):
        if partial is not None and partial != 1:
            raise UnsupportedModelError(
                f"partial_rotary_factor {partial!r} is not supported: use a model that rotates "
                "all dimensions (1.0)"
            )
    if config.get(ORIGINAL) is not None:
        rope[ORIGINAL] = config[ORIGINAL]
    rope[ORIGINAL] = positive(rope, ORIGINAL, max_positions)
    return rope
