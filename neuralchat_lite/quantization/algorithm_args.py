"""The settings of each algorithm: `algorithm_args` of WeightOnlyQuantConfig, checked.

A setting is one row: its default, and what it must be. The names are those of Neural Compressor and
AutoRound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.values import plain, shown, suggestion


@dataclass(frozen=True)
class Setting:
    """default: what it is when it is not given
    valid: whether a value is allowed; `rule` says so in words
    """

    default: Any
    valid: Callable[[Any], bool]
    rule: str


def flag(default: bool) -> Setting:
    return Setting(default, lambda value: isinstance(value, bool), "True or False")


def count(default: int) -> Setting:
    return Setting(default, lambda value: is_integer(value) and value >= 1, "an integer from 1 on")


def fraction(default: float) -> Setting:
    return Setting(
        default, lambda value: is_number(value) and 0 < value <= 1, "a number above 0, at most 1"
    )


def rate(default: float | None) -> Setting:
    return Setting(
        default,
        lambda value: value is default or (is_number(value) and 0 < value < float("inf")),
        "a positive number" + (" or None" if default is None else ""),
    )


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


SETTINGS: dict[str, dict[str, Setting]] = {
    "GPTQ": {
        # Columns with large inputs first. Their groups are those of the original order.
        "act_order": flag(False),
        # Scales from the original weights, before any error was moved; act_order implies it.
        "static_groups": flag(False),
        "percdamp": fraction(0.01),  # of the mean diagonal of the Hessian, added to it
        "block_size": count(128),  # columns whose errors are moved together
        "mse": flag(False),  # search each scale for the least error
        "true_sequential": flag(False),  # inputs of a matrix after those before it are quantized
        # Products are to be those with the inputs that unquantized matrices give.
        "exact_inputs": flag(False),
    },
    "AUTOROUND": {
        "iters": count(200),  # steps of signed gradient descent for each block
        "lr": rate(None),  # of the rounding; None: 1 / iters
        "minmax_lr": rate(None),  # of the ranges; None: as lr
        "batch_size": count(8),  # samples of a step
        "enable_minmax_tuning": flag(True),
        "enable_quanted_input": flag(True),  # inputs of a block from quantized ones before it
    },
    "AWQ": {
        "use_auto_scale": flag(True),  # search the scales of input channels
        "use_mse_search": flag(True),  # search the range of each matrix
    },
    "TEQ": {
        "iters": count(100),  # steps of Adam for each block
        "lr": rate(1e-3),
        "batch_size": count(4),
    },
    "HQQ": {
        "lp_norm": fraction(0.7),
        "beta": rate(10.0),
        "kappa": rate(1.01),
        "iters": count(20),
    },
}


def checked_args(algorithm: str, given: Any) -> dict[str, Any]:
    """The settings that were given, in one spelling. Raises ConfigError for a bad one."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"algorithm_args must be a dictionary of settings, got {shown(given)}: write it as "
            "{'iters': 200}"
        )
    known = SETTINGS.get(algorithm, {})
    checked = {}
    for name, value in given.items():
        if name not in known:
            hint = suggestion(str(name), list(known))
            expected = f"expected some of {list(known)}" if known else "it has none: leave it out"
            raise ConfigError(f"{shown(name)} is not a setting of {algorithm}{hint}: {expected}")
        value = plain(value)
        if not known[name].valid(value):
            raise ConfigError(
                f"{name} of {algorithm} must be {known[name].rule}, got {shown(value)}: the "
                f"default is {known[name].default}"
            )
        checked[str(name)] = value
    return dict(sorted(checked.items()))


def all_settings(algorithm: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given settings and the defaults of the others."""
    defaults = {name: setting.default for name, setting in SETTINGS.get(algorithm, {}).items()}
    return {**defaults, **given}
