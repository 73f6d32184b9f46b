"""What each option of `GenerationOptions` must be, and the forms in which it may be given."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.values import plain, shown

# (ids [1, n], scores [1, vocab]) -> scores, as transformers' LogitsProcessor objects are called
LogitsProcessor = Callable[..., Any]


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -1e30 < value < 1e30  # an int may be too large for a float


def is_positive_integer(value: Any) -> bool:
    return is_integer(value) and value > 0


def is_count(value: Any) -> bool:
    return is_integer(value) and value >= 0


def is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def is_some_text(value: Any) -> bool:
    return value is None or is_text(value)


def is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def is_penalty(value: Any) -> bool:
    return is_number(value) and -2 <= value <= 2


def is_bias(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        is_count(token) and is_number(bias) and -100 <= bias <= 100 for token, bias in value.items()
    )


# option -> (what it must be, whether a value is)
RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "max_new_tokens": ("a positive integer", is_positive_integer),
    "min_new_tokens": ("an integer >= 0 (0: off)", is_count),
    # Below that, logits / temperature leaves the range of fp32.
    "temperature": (
        "0 (greedy) or a finite number >= 1e-6",
        lambda v: is_number(v) and (v == 0 or v >= 1e-6),
    ),
    "top_k": ("an integer >= 0 (0: off)", is_count),
    "top_p": ("a number in (0, 1] (1: off)", lambda v: is_number(v) and 0 < v <= 1),
    "min_p": ("a number in [0, 1] (0: off)", lambda v: is_number(v) and 0 <= v <= 1),
    # Beyond that, logits leave the range of fp32.
    "repetition_penalty": (
        "a number from 0.01 to 100 (1: off)",
        lambda v: is_number(v) and 0.01 <= v <= 100,
    ),
    "presence_penalty": ("a number from -2 to 2 (0: off)", is_penalty),
    "frequency_penalty": ("a number from -2 to 2 (0: off)", is_penalty),
    "logit_bias": ("a dictionary of token ids to numbers from -100 to 100", is_bias),
    "logits_processors": (
        "functions of (ids, scores), such as transformers' LogitsProcessor objects, in a list",
        lambda v: isinstance(v, tuple) and all(map(callable, v)),
    ),
    "seed": (
        "None or an integer in [0, 2**64)",
        lambda v: v is None or (is_integer(v) and 0 <= v < 2**64),
    ),
    "stop": (
        "a string or several, none of them empty",
        lambda v: isinstance(v, tuple) and all(map(is_text, v)),
    ),
    "ignore_eos": ("True or False", is_flag),
    "logprobs": ("True or False", is_flag),
    "top_logprobs": ("an integer >= 0 (0: off)", is_count),
    "draft": (
        "None, 'ngram', or a loaded model",
        lambda v: v is None or v == "ngram" or hasattr(v, "decoder"),
    ),
    "n": ("a positive integer", is_positive_integer),
    "prefill": ("a text", lambda v: isinstance(v, str)),
    "echo": ("True or False", is_flag),
    "chat_template_kwargs": (
        "a dictionary of names to values",
        lambda v: isinstance(v, Mapping) and all(isinstance(name, str) for name in v),
    ),
    "json_schema": (
        "a JSON schema: a dictionary, its JSON text, or a pydantic class",
        lambda v: v is None or isinstance(v, dict),
    ),
    "json_object": ("True or False", is_flag),
    "regex": ("a regular expression, as a text", is_some_text),
    "grammar": ("a grammar in llguidance's Lark form, as a text", is_some_text),
    "choice": (
        "one text or more, none of them empty",
        lambda v: v is None or (isinstance(v, tuple) and v != () and all(map(is_text, v))),
    ),
}


def as_tuple(value: Any) -> Any:
    """A string alone is one of several, None is none; what is no list or the like stays."""
    if value is None or isinstance(value, str):
        return () if value is None else (value,)
    return tuple(value) if isinstance(value, Iterable) else value


def as_biases(value: Any) -> Any:
    """Biases with plain numbers. JSON has no integers as keys, so "7" is taken for 7."""
    if not isinstance(value, Mapping):
        return {} if value is None else value
    decimal = re.compile("[0-9]{1,9}")
    keys = [int(k) if isinstance(k, str) and decimal.fullmatch(k) else plain(k) for k in value]
    return dict(zip(keys, map(plain, value.values()), strict=True))


def as_dictionary(value: Any) -> Any:
    return {} if value is None else dict(value) if isinstance(value, Mapping) else value


def as_schema(value: Any) -> Any:
    """A schema as a dictionary; what is no schema stays. Raises ConfigError for a class that
    pydantic has no schema of."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    if isinstance(value, type) and hasattr(value, "model_json_schema"):
        try:
            return value.model_json_schema()
        except Exception as error:  # the user's own types may raise any
            raise ConfigError(
                f"pydantic has no JSON schema of {value.__name__} ({shown(str(error))}): give "
                "json_schema as a dictionary"
            ) from None
    return dict(value) if isinstance(value, Mapping) else value


# option -> what makes its form out of those that it may be given in; `plain` of the others
FORMS: dict[str, Callable[[Any], Any]] = {
    "logit_bias": as_biases,
    "logits_processors": as_tuple,
    "stop": as_tuple,
    "prefill": lambda value: "" if value is None else value,
    "chat_template_kwargs": as_dictionary,
    "draft": lambda value: value,
    "json_schema": as_schema,
    "choice": lambda value: None if value is None else as_tuple(value),
}
