"""A request's fields as the library's options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.generation.options import (
    FILTERS,
    SEEDS,
    GenerationOptions,
    without_idle_filters,
)
from neuralchat_lite.server.requests.fields import Body

# fields that are options of the same name
SAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
    "stop",
    "ignore_eos",
)
RENAMED = {"min_tokens": "min_new_tokens"}
# What a field is called in requests, where the library's rule calls it otherwise.
SAID = {"min_new_tokens": "min_tokens", "max_new_tokens": "max_tokens"}


def options_of(body: Body, defaults: Mapping[str, Any], **more: Any) -> GenerationOptions:
    """body: has some of the fields
    defaults: beneath what the request says
    more: above it; None for what it does not say

    Raises ConfigError in the request's words.
    """
    given = {name: getattr(body, name, None) for name in SAME}
    given |= {ours: getattr(body, theirs, None) for theirs, ours in RENAMED.items()}
    given |= more
    if given["top_k"] == -1:
        given["top_k"] = 0
    options = {**defaults, **{name: value for name, value in given.items() if value is not None}}
    # A request for the likeliest token says enough: the filters have nothing left to choose from.
    options = without_idle_filters(options)
    if options.get("top_p") == 0:
        options = {**{n: v for n, v in options.items() if n not in FILTERS}, "temperature": 0.0}
    try:
        return GenerationOptions.of(options)
    except ConfigError as error:
        message = str(error)
        for ours, theirs in SAID.items():
            message = message.replace(ours, theirs)
        raise ConfigError(message) from None


def of_each_answer(options: GenerationOptions, n: int) -> list[GenerationOptions]:
    """Answer i has the seed `seed + i`. With temperature 0 all are the same, as was asked."""
    if options.seed is None:
        return [options] * n
    return [replace(options, seed=(options.seed + index) % SEEDS) for index in range(n)]
