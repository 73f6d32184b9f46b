"""How weights are quantized: one frozen configuration, checked when it is made.

The options are named as in intel-extension-for-transformers, so that its users only change an
import. Valid values can be combined freely. An invalid value is refused at once, with the rule and
the remedy.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.files.json_file import parse_json
from neuralchat_lite.quantization.algorithm_args import checked_args
from neuralchat_lite.quantization.legacy import accept_legacy
from neuralchat_lite.quantization.schemes import (
    HEAD,
    SEARCHED,
    SEARCHED_SCHEME,
    not_searched,
    refuse_schemes,
)
from neuralchat_lite.quantization.settings import MatrixSettings, Override, checked_overrides
from neuralchat_lite.quantization.spellings import OF_A_MATRIX, canonical, checked_group_size
from neuralchat_lite.values import shown

if TYPE_CHECKING:
    import torch


# What compute_dtype="auto" takes: 8 bits cost int4 weights nothing beside their own rounding, and
# int8 weights more than that (docs/explanation/quantization.md has figures).
AUTO_COMPUTE = {"int4": "int8", "int4_clip": "int8", "int4_fullrange": "int8", "int8": "bf16"}
# Names that weight types had in folders of format version 1.
FIRST_NAMES = {"int4_clip": "int4"}
WIDTHS = ("int8", "bf16", "fp32")  # precisions of activations, narrowest first


@dataclass(frozen=True, init=False)
class WeightOnlyQuantConfig:
    """How the linear layers of a model are quantized, and how they are computed.

    weight_dtype: "int4" (16 levels; the scale and the zero of a group have the least squared
        error that a search found, see quantization/search.py), and by plain rounding "int4_clip"
        (codes -7..7, scale absmax/7), "int4_fullrange" (-8..7, absmax/8) or "int8" (-127..127,
        absmax/127). With scheme="asym" and "affine" both plain int4 names mean the same.
    compute_dtype: precision of the activations: "bf16", "fp32" or "int8"; "auto" is "int8" for
        int4 weights and "bf16" for int8 weights, the output head's by its own weight_dtype
    group_size: input columns that share a scale: 32, 64, 128, or -1 for a whole row
    scheme: "sym", "asym" (levels spread from min(w, 0) to max(w, 0), with an integer zero point a
        group), "affine" (from min(w) to max(w), with a float minimum a group), or "affine8" (a
        minimum of 8 bits, in eighths of a step). "affine8" is for "int4": matrices of other types
        beside it are "sym". None: "affine8" where something is "int4", else "sym"
    scale_dtype: "fp16", "bf16" or "fp32"
    algorithm: "RTN" (round to nearest), or a name of docs/how-to/calibrate.md
    algorithm_args: settings of the algorithm, by name; those that are left out have their default
    lm_head: weight_dtype of the output head
    modules_to_not_convert: modules that keep the checkpoint's weights, by full name, by a
        leading part ("model.layers.0") or by a trailing part ("lm_head", "mlp.down_proj")
    overrides: other settings of single matrices: a shell pattern on the full name of a module ->
        a weight_dtype, or a mapping of weight_dtype, group_size, scheme, scale_dtype. The first
        pattern that matches counts, also for the head. The full name of the embedding, such as
        "model.embed_tokens", quantizes it too.

    torch dtypes are accepted for names of dtypes, and None for the default. Options of
    intel-extension-for-transformers without an effect here are accepted with one warning.

    Raises ConfigError for a value that is not listed here and for an unknown option.
    """

    weight_dtype: str
    compute_dtype: str
    group_size: int
    scheme: str
    scale_dtype: str
    algorithm: str
    lm_head: str
    modules_to_not_convert: tuple[str, ...]
    overrides: tuple[Override, ...]
    algorithm_args: Mapping[str, Any] = field(hash=False)

    def __init__(
        self,
        /,  # an option of that name is refused like other unknown ones
        weight_dtype: str | torch.dtype | None = None,
        compute_dtype: str | torch.dtype | None = None,
        group_size: int = 32,
        scheme: str | None = None,
        scale_dtype: str | torch.dtype | None = None,
        algorithm: str = "RTN",
        lm_head: str | torch.dtype | None = None,
        modules_to_not_convert: tuple[str, ...] | list[str] | None = None,
        overrides: Any = None,
        algorithm_args: Mapping[str, Any] | None = None,
        **legacy: Any,
    ) -> None:
        named = {
            "weight_dtype": weight_dtype,
            "compute_dtype": compute_dtype,
            "scale_dtype": scale_dtype,
            "algorithm": algorithm,
            "lm_head": lm_head,
        }
        skipped = accept_legacy(legacy, [each.name for each in dataclasses.fields(self)])
        if skipped is not None:
            if modules_to_not_convert:
                raise ConfigError(
                    "llm_int8_skip_modules and modules_to_not_convert mean the same: give one"
                )
            modules_to_not_convert = skipped
        # The class is frozen; this is its only assignment.
        for option, value in named.items():
            object.__setattr__(self, option, canonical(option, value))
        object.__setattr__(self, "group_size", checked_group_size(group_size))
        modules = checked_modules(modules_to_not_convert)
        object.__setattr__(self, "modules_to_not_convert", modules)
        object.__setattr__(self, "overrides", checked_overrides(overrides, OF_A_MATRIX))
        object.__setattr__(self, "scheme", self.checked_scheme(scheme))
        settings = checked_args(self.algorithm, algorithm_args)
        object.__setattr__(self, "algorithm_args", MappingProxyType(settings))

    def checked_scheme(self, scheme: object) -> str:
        """The scheme of the matrices without one of their own; None is the default of "int4" where
        something has this type, but for algorithms that have no minima."""
        if scheme is None:
            found = SEARCHED_SCHEME if self.algorithm == "RTN" and self.searches() else "sym"
        else:
            found = canonical("scheme", scheme)
        if found == SEARCHED_SCHEME and not self.searches():
            raise not_searched("", self.weight_dtype)
        refuse_schemes(self.algorithm, found, self.overrides, self.weight_dtype, self.lm_head)
        return found

    def searches(self) -> bool:
        """Whether some matrix may be "int4", whose scales are searched for."""
        return SEARCHED in {
            self.weight_dtype,
            self.lm_head,
            *(each.weight_dtype for each in self.overrides),
        }

    def converts(self, module: str) -> bool:
        """Whether the linear layer of this name is to be quantized."""
        return not any(names(entry, module) for entry in self.modules_to_not_convert)

    def settings_of(self, module: str) -> MatrixSettings | None:
        """How a linear layer is quantized; None when it stays as it is."""
        if not self.converts(module):
            return None
        weight_dtype = self.lm_head if module == HEAD else self.weight_dtype
        common = MatrixSettings(weight_dtype, self.group_size, self.scheme, self.scale_dtype)
        override = self.override_of(module)
        found = common if override is None else override.over(common)
        if found.scheme == SEARCHED_SCHEME and found.weight_dtype != SEARCHED:
            return replace(found, scheme="sym")
        return found

    def quantizes_table(self, module: str) -> bool:
        """Whether an embedding of this name is quantized: if an override gives its full name. A
        pattern that happens to match it does not change what is no linear layer."""
        override = self.override_of(module)
        return override is not None and override.pattern == module and self.converts(module)

    def override_of(self, module: str) -> Override | None:
        """The first override whose pattern matches a module."""
        return next((each for each in self.overrides if each.matches(module)), None)

    def dtype_of(self, module: str) -> str | None:
        """The weight_dtype that a linear layer gets; None when it stays as it is."""
        settings = self.settings_of(module)
        return None if settings is None else settings.weight_dtype

    def compute_of(self, weight_dtype: str) -> str:
        """The compute_dtype that products with weights of a weight_dtype take."""
        auto = self.compute_dtype == "auto"
        return AUTO_COMPUTE[weight_dtype] if auto else self.compute_dtype

    def compute_together(self, *modules: str) -> str:
        """The compute_dtype of matrices that share an input, which is in one precision: the widest
        of those that their weights take."""
        found = [settings for module in modules if (settings := self.settings_of(module))]
        taken = {self.compute_of(settings.weight_dtype) for settings in found}
        return max(taken, key=WIDTHS.index, default=self.compute_of(self.weight_dtype))

    def computes(self) -> dict[str, str]:
        """`compute_of` each weight_dtype that the model has: its layers', its head's, and those of
        overrides."""
        head = self.settings_of(HEAD)
        names = [self.weight_dtype, *([head.weight_dtype] if head else [])]
        names += [each.weight_dtype for each in self.overrides if each.weight_dtype]
        return {name: self.compute_of(name) for name in names}

    def bytes_config(self) -> dict[str, Any]:
        """The options that decide the quantized bytes, in one spelling each.

        Two configurations with equal results share a cache entry: compute_dtype is chosen when
        the model runs, and plain int4 that is not symmetric is the same by both of its
        names.
        """
        decisive = self.to_dict()
        del decisive["compute_dtype"]
        decisive["modules_to_not_convert"] = sorted(set(self.modules_to_not_convert))
        if self.overrides:  # pairs, as their order counts and a digest sorts keys
            decisive["overrides"] = [[each.pattern, each.given()] for each in self.overrides]
        elif self.scheme in ("asym", "affine"):
            for option in ("weight_dtype", "lm_head"):
                decisive[option] = decisive[option].replace("_fullrange", "_clip")
        return decisive

    def key_config(self) -> dict[str, Any]:
        """`bytes_config` as the cache key and the names of entries have it: in that of format
        version 1, which has no search, "int4_clip" was called "int4"."""
        found = self.bytes_config()
        if not self.searches():
            for option in ("weight_dtype", "lm_head"):
                found[option] = FIRST_NAMES.get(found[option], found[option])
        return found

    @property
    def short_name(self) -> str:
        """Weight type and group size: "int4-g32"."""
        group = "row" if self.group_size == -1 else f"g{self.group_size}"
        return f"{self.key_config()['weight_dtype']}-{group}"

    def to_dict(self) -> dict[str, Any]:
        """All options as JSON values; "overrides" and "algorithm_args" only when there are some, so
        that what older releases wrote and keyed stays the same."""
        names = [field.name for field in dataclasses.fields(self)]
        options = {name: getattr(self, name) for name in names} | {
            "modules_to_not_convert": list(self.modules_to_not_convert),
            "overrides": {each.pattern: each.given() for each in self.overrides},
            "algorithm_args": dict(self.algorithm_args),
        }
        for name in ("overrides", "algorithm_args"):
            if not options[name]:
                del options[name]
        return options

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_first_format(cls, options: Mapping[str, Any]) -> WeightOnlyQuantConfig:
        """The inverse of what folders of format version 1 note: their "int4" is "int4_clip"."""
        names = {old: new for new, old in FIRST_NAMES.items()}
        renamed = {
            option: names.get(options[option], options[option])
            for option in ("weight_dtype", "lm_head")
            if isinstance(options.get(option), str)
        }
        return cls.from_dict({**options, **renamed})

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> WeightOnlyQuantConfig:
        """The inverse of `to_dict`. Raises ConfigError like the constructor."""
        return cls(**options)

    @classmethod
    def from_json(cls, text: str) -> WeightOnlyQuantConfig:
        """The inverse of `to_json`. Raises ConfigError for text that is not a JSON object."""
        return cls.from_dict(options_of_json(text))


def options_of_json(text: str) -> dict[str, Any]:
    """Options as `to_json` writes them. Raises ConfigError for text that is not a JSON object."""
    try:
        return dict(parse_json(text))
    except ValueError as error:
        raise ConfigError(
            f"the quantization config is not JSON ({error}): write it with to_json"
        ) from None


def checked_modules(value: object) -> tuple[str, ...]:
    modules = () if value is None else value
    if not isinstance(modules, (tuple, list)) or not all(
        isinstance(name, str) and name for name in modules
    ):
        raise ConfigError(
            f"modules_to_not_convert must be a list of module names such as ['lm_head'], "
            f"got {shown(value)}"
        )
    return tuple(modules)


def names(entry: str, module: str) -> bool:
    """Whether an entry of modules_to_not_convert names this module or one that contains it."""
    return module == entry or module.endswith(f".{entry}") or module.startswith(f"{entry}.")
