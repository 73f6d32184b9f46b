"""How to choose tokens and when to stop: one option, one rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.values import plain, shown, suggestion

# What other libraries call our options.
OTHER_NAMES = {
    "max_tokens": "max_new_tokens",
    "max_length": "max_new_tokens",
    "n_predict": "max_new_tokens",
    "num_predict": "max_new_tokens",
    "num_tokens": "max_new_tokens",
    "stop_sequences": "stop",
    "stop_strings": "stop",
    "stop_words": "stop",
    "repeat_penalty": "repetition_penalty",
    "do_sample": "temperature",
    "random_state": "seed",
}


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -1e30 < value < 1e30  # an int may be too large for a float


# option -> (what it must be, whether a value is)
RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "max_new_tokens": ("a positive integer", lambda v: is_integer(v) and v > 0),
    # Below that, logits / temperature leaves the range of fp32.
    "temperature": (
        "0 (greedy) or a finite number >= 1e-6",
        lambda v: is_number(v) and (v == 0 or v >= 1e-6),
    ),
    "top_k": ("an integer >= 0 (0: off)", lambda v: is_integer(v) and v >= 0),
    "top_p": ("a number in (0, 1] (1: off)", lambda v: is_number(v) and 0 < v <= 1),
    "min_p": ("a number in [0, 1] (0: off)", lambda v: is_number(v) and 0 <= v <= 1),
    # Beyond that, logits leave the range of fp32.
    "repetition_penalty": (
        "a number from 0.01 to 100 (1: off)",
        lambda v: is_number(v) and 0.01 <= v <= 100,
    ),
    "seed": (
        "None or an integer in [0, 2**64)",
        lambda v: v is None or (is_integer(v) and 0 <= v < 2**64),
    ),
    "stop": (
        "a string or several, none of them empty",
        lambda v: isinstance(v, tuple) and all(isinstance(s, str) and s for s in v),
    ),
    "ignore_eos": ("True or False", lambda v: isinstance(v, bool)),
}

FILTERS = ("top_k", "top_p", "min_p")  # of sampling


class GenerationKeywords(TypedDict, total=False):
    """The fields of `GenerationOptions` as keyword arguments, for type checkers and editors."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | Sequence[str] | None
    ignore_eos: bool


@dataclass(frozen=True)
class GenerationOptions:
    """How to choose tokens and when to stop. Raises ConfigError for a value that is not allowed.

    max_new_tokens: tokens to generate at most
    temperature: 0 takes the likeliest token; otherwise logits are divided by it and sampled
    top_k, top_p, min_p: which tokens may be sampled; they need a temperature
    repetition_penalty: divides the (positive) logits of tokens that have occurred
    seed: makes sampling repeatable; None draws a new one from the system
    stop: texts that end the answer and are not part of it
    ignore_eos: go on after the end-of-text token

    Scalars of numpy and torch are accepted as the numbers that they are.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: Sequence[str] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        stop: Any = self.stop
        if stop is None or isinstance(stop, str):
            object.__setattr__(self, "stop", () if stop is None else (stop,))
        elif isinstance(stop, Iterable):
            object.__setattr__(self, "stop", tuple(stop))
        for name, (rule, holds) in RULES.items():
            value = plain(getattr(self, name))
            object.__setattr__(self, name, value)
            if not holds(value):
                raise ConfigError(f"{name} must be {rule}, got {shown(value)}")
        filters = {name: getattr(self, name) for name in FILTERS}
        idle = [name for name, value in filters.items() if value != getattr(type(self), name)]
        if idle and self.temperature == 0:
            raise ConfigError(
                f"{', '.join(idle)} would have no effect with temperature 0 (greedy): "
                "set a temperature > 0, e.g. temperature=0.7, or leave it out"
            )

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> GenerationOptions:
        """From keyword arguments. Raises ConfigError that lists the names for an unknown one."""
        check_names(options)
        return cls(**options)

    def but(self, options: Mapping[str, Any]) -> GenerationOptions:
        """These, with some changed by keyword arguments. Raises ConfigError as `of` does."""
        check_names(options)
        return replace(self, **options) if options else self


def without_idle_filters(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without the filters of sampling, if they ask for the likeliest token."""
    greedy = options.get("temperature", 0) == 0
    return {name: value for name, value in options.items() if not (greedy and name in FILTERS)}


def check_names(options: Mapping[str, Any]) -> None:
    names = [field.name for field in fields(GenerationOptions)]
    unknown = sorted(set(options) - set(names))
    if unknown:
        said = [f"{name}{meant(name, names)}" for name in unknown]
        raise ConfigError(
            f"unknown generation option {', '.join(said)}: expected {', '.join(names)}"
        )


def meant(name: str, names: list[str]) -> str:
    known = OTHER_NAMES.get(name.lower())
    return f" (did you mean {known!r}?)" if known else suggestion(name, names)
