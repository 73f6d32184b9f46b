"""How one matrix is quantized: the options of a configuration that may differ between matrices.

`overrides` of a WeightOnlyQuantConfig gives them by shell patterns on the full names of modules, in
the order in which they are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.values import shown, suggestion


@dataclass(frozen=True)
class MatrixSettings:
    """The options of one matrix, by their names and in the spelling of WeightOnlyQuantConfig."""

    weight_dtype: str
    group_size: int
    scheme: str
    scale_dtype: str


@dataclass(frozen=True)
class Override:
    """The options of the modules whose full name matches a shell pattern; None: as elsewhere."""

    pattern: str
    weight_dtype: str | None = None
    group_size: int | None = None
    scheme: str | None = None
    scale_dtype: str | None = None

    def matches(self, module: str) -> bool:
        return module == self.pattern or fnmatchcase(module, self.pattern)

    def given(self) -> dict[str, Any]:
        """The options that are not None."""
        options = asdict(self)
        del options["pattern"]
        return {name: value for name, value in options.items() if value is not None}

    def over(self, settings: MatrixSettings) -> MatrixSettings:
        return replace(settings, **self.given())


def checked_overrides(
    value: Any, checks: Mapping[str, Callable[[Any], Any]]
) -> tuple[Override, ...]:
    """`overrides` as a user writes them, checked.

    value: a mapping, or pairs, of a pattern and a weight_dtype or a mapping of options
    checks: option -> what checks its value and returns its one spelling

    Raises ConfigError.
    """
    if value is None:
        return ()
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, (tuple, list)):
        raise not_overrides(value)
    found = []
    for pair in pairs:
        if isinstance(pair, Override):
            pair = pair.pattern, pair.given()
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise not_overrides(value)
        pattern, options = pair
        if not isinstance(pattern, str) or not pattern:
            raise not_overrides(value)
        found.append(Override(pattern, **checked_options(pattern, options, checks)))
    return tuple(found)


def not_overrides(value: object) -> ConfigError:
    return ConfigError(
        "overrides must map patterns of module names to settings, such as {'lm_head': 'int8', "
        f"'model.layers.0.*': {{'group_size': 64}}}}, got {shown(value)}"
    )


def checked_options(
    pattern: str, options: Any, checks: Mapping[str, Callable[[Any], Any]]
) -> dict[str, Any]:
    where = f"overrides[{shown(pattern)}]"
    if not isinstance(options, Mapping):
        options = {"weight_dtype": options}
    if not options:
        raise ConfigError(f"{where} changes nothing: give one of {list(checks)}, or take it out")
    checked = {}
    for name, value in options.items():
        if name not in checks:
            meant = suggestion(str(name), list(checks))
            raise ConfigError(
                f"{where}: {shown(name)} is not an option of a single matrix{meant}: expected one "
                f"of {list(checks)}"
            )
        if value is None:
            raise ConfigError(f"{where}: {name} is None: give a value, or leave it out")
        try:
            checked[name] = checks[name](value)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    return checked
