"""Reading a PEFT adapter_config.json: which modules have an adapter, and its rank and scale.

Modules are selected as PEFT selects them. An option that would change the merged weights and is not
implemented is refused by name. So a merge has the same weights as in PEFT, or it fails.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from neuralchat_lite.adapters.patterns import Answers, PatternError, Query, answer
from neuralchat_lite.errors import CheckpointError, UnsupportedModelError
from neuralchat_lite.families.config_values import LARGEST
from neuralchat_lite.files.json_file import read_json
from neuralchat_lite.files.names import ADAPTER_CONFIG
from neuralchat_lite.values import shown

REMEDY = (
    "merge it with peft (merge_and_unload, then save_pretrained of model and tokenizer) and give "
    "the merged folder as the model"
)
# The options that merged weights depend on; they are read below.
READ = (
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "bias",
    "init_lora_weights",
    "base_model_name_or_path",
)
# Options without an effect on merged weights: training, bookkeeping, and how the matrices were
# initialised. PEFT sets fan_in_fan_out to false for Linear layers, the only ones in our families.
WITHOUT_EFFECT = (
    "auto_mapping",
    "corda_config",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
)
# Initialisations that leave the base model's weights unchanged. With the others ("pissa", "olora",
# "loftq", "corda" ...) PEFT subtracts something from them when it loads the adapter.
NEUTRAL_INITIALISATIONS = (None, True, False, "gaussian", "eva", "orthogonal")

MOST_NAMES = 4096  # of a list or of patterns: more than a large model has modules

ALL_LINEAR = r"model\.layers\..*"  # "all-linear" in PEFT: every matrix but the output head

Value = TypeVar("Value")
Many = TypeVar("Many", list[str], dict[str, Any])
Names = str | tuple[str, ...]  # a pattern of whole names, or a list of their ends


@dataclass(frozen=True)
class AdapterConfig:
    """The content of an adapter_config.json, as `read_adapter_config` returns it. What it selects
    is asked of the object that `on` returns.

    rank_pattern, alpha_pattern: exceptions by module: a pattern of the end of its name -> value
    targets, excluded: the modules with and without an adapter: a pattern, or ends of names
    layers: the numbers of the layers with an adapter, or None for all
    layers_pattern: the names before a layer's number, or none for any
    base: the name that the adapter gives its base model
    answers: what the patterns say of the modules of a base
    """

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rank_stabilised: bool
    targets: Names
    excluded: Names
    layers: tuple[int, ...] | None
    layers_pattern: tuple[str, ...]
    base: str | None
    answers: Answers = field(default_factory=dict)

    def on(self, modules: Iterable[str]) -> AdapterConfig:
        """The same, for the modules of a base. Raises CheckpointError for a pattern that is no
        regular expression or takes too long to match."""
        known = list(modules)
        try:
            return replace(self, answers=answer(self.queries(), known))
        except PatternError as error:
            raise CheckpointError(
                f"{ADAPTER_CONFIG}: {self.key_of(error.pattern)} must be a regular expression that "
                f"can be matched in time, got {shown(error.pattern)} ({error}): write the names "
                "of modules instead"
            ) from None

    def key_of(self, pattern: str) -> str:
        """The option that has a pattern."""
        options: dict[str, Iterable[Names]] = {
            "target_modules": [self.targets],
            "exclude_modules": [self.excluded],
            "rank_pattern": self.rank_pattern,
            "alpha_pattern": self.alpha_pattern,
        }
        return next((key for key in options if pattern in list(options[key])), "layers_pattern")

    def queries(self) -> Iterator[Query]:
        for names in (self.targets, self.excluded):
            if isinstance(names, str):
                yield names, "whole"
        for pattern in (*self.rank_pattern, *self.alpha_pattern):
            yield pattern, "ending"
        if self.layers is not None:
            yield self.layer_query()

    def layer_query(self) -> Query:
        return "|".join(self.layers_pattern) or r"[^.]*", "layer"

    def rank_of(self, module: str) -> int:
        return self.first_match(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """The factor of B @ A: alpha / r, or alpha / sqrt(r) when rank-stabilised
        (arXiv:2312.03732)."""
        rank = self.rank_of(module)
        alpha = self.first_match(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)

    def has_target(self, module: str) -> bool:
        """Whether PEFT gives this module of the base an adapter."""
        if self.matches(self.excluded, module) or not self.matches(self.targets, module):
            return False
        # In PEFT, layers_to_transform does not restrict a pattern or a whole name.
        if self.layers is None or isinstance(self.targets, str) or module in self.targets:
            return True
        number = self.answers[self.layer_query()][module]
        return number is not None and int(number) in self.layers

    def matches(self, names: Names, module: str) -> bool:
        if isinstance(names, str):
            return self.answers[names, "whole"][module] is not None
        return is_listed(names, module)

    def first_match(self, patterns: Mapping[str, Value], module: str, default: Value) -> Value:
        for end, value in patterns.items():
            if self.answers[end, "ending"][module] is not None:
                return value
        return default

    def unknown_targets(self, modules: Iterable[str]) -> list[str]:
        """The listed targets that match no module of a model."""
        if isinstance(self.targets, str):
            return []
        known = list(modules)
        return [end for end in self.targets if not any(is_listed((end,), name) for name in known)]


def is_listed(names: Iterable[str], module: str) -> bool:
    """Whether a list has a module, by its whole name or the end of it."""
    return any(module == name or module.endswith(f".{name}") for name in names)


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read and check the adapter_config.json of a folder.

    Raises CheckpointError if it is missing or has an invalid value, UnsupportedModelError if a
    merge needs more than W + scale * B @ A.
    """
    path = folder / ADAPTER_CONFIG
    if not os.path.lexists(path):
        raise CheckpointError(
            f"{folder} has no {ADAPTER_CONFIG}, so it is not a PEFT adapter: give the folder that "
            "peft's save_pretrained wrote, or pass a whole model as the model"
        )
    given = read_json(path)
    refuse_other_kinds(path, given)
    layers = given.get("layers_to_transform")
    if isinstance(layers, int) and not isinstance(layers, bool):
        layers = [layers]
    numbered = isinstance(layers, list) and all(is_count(index, 0) for index in layers)
    if layers is not None and not numbered:
        raise wrong(path, "layers_to_transform", "a list of layer numbers", layers)
    dropout = given.get("lora_dropout") or 0
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
        # It is of training alone, but PEFT refuses it too, and such a file is not as it was saved.
        raise wrong(path, "lora_dropout", "a number from 0 to 1", dropout)
    base = given.get("base_model_name_or_path")
    stabilised = given.get("use_rslora") or False
    if not isinstance(stabilised, bool):
        raise wrong(path, "use_rslora", "true or false", stabilised)
    config = AdapterConfig(
        rank=checked_rank(path, "r", given.get("r")),
        alpha=checked_alpha(path, "lora_alpha", given.get("lora_alpha")),
        rank_pattern={
            end: checked_rank(path, f"rank_pattern[{shown(end)}]", rank)
            for end, rank in patterns(path, "rank_pattern", given).items()
        },
        alpha_pattern={
            end: checked_alpha(path, f"alpha_pattern[{shown(end)}]", alpha)
            for end, alpha in patterns(path, "alpha_pattern", given).items()
        },
        rank_stabilised=stabilised,
        targets=checked_names(path, "target_modules", given.get("target_modules")),
        excluded=checked_names(path, "exclude_modules", given.get("exclude_modules") or []),
        layers=tuple(layers) if isinstance(layers, list) and layers else None,
        layers_pattern=checked_layers_pattern(path, given.get("layers_pattern") or []),
        base=base if isinstance(base, str) and base else None,
    )
    if not config.targets:
        raise wrong(path, "target_modules", "a list of names or a pattern", config.targets)
    return config


def refuse_other_kinds(path: Path, given: Mapping[str, Any]) -> None:
    kind = given.get("peft_type")
    if kind != "LORA":
        raise UnsupportedModelError(
            f"{path}: peft_type {shown(kind)} is not supported, expected 'LORA': {REMEDY}"
        )
    bias = given.get("bias", "none")
    if bias != "none":
        raise UnsupportedModelError(
            f"{path}: bias {shown(bias)} means that biases were trained too, expected 'none': "
            f"{REMEDY}"
        )
    start = given.get("init_lora_weights")
    if start not in NEUTRAL_INITIALISATIONS:
        raise UnsupportedModelError(
            f"{path}: init_lora_weights {shown(start)} changes the weights of the base model "
            "too: save the adapter as plain LoRA (peft's save_pretrained with "
            f"path_initial_model_for_weight_conversion), or {REMEDY}"
        )
    for key, value in given.items():
        if value and key not in READ and key not in WITHOUT_EFFECT:
            raise UnsupportedModelError(
                f"{path}: {shown(key)[1:-1]} {shown(value)} asks for more than W + scale * B @ A: "
                f"{REMEDY}"
            )


def checked_rank(path: Path, key: str, value: Any) -> int:
    if not is_count(value, 1):
        raise wrong(path, key, "a positive integer", value)
    if value > LARGEST:
        raise wrong(path, key, f"at most {LARGEST}", value)
    return int(value)


def checked_alpha(path: Path, key: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) < 1e30:
        raise wrong(path, key, "a number below 1e30", value)
    return float(value)


def is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def checked_names(path: Path, key: str, value: Any) -> Names:
    if isinstance(value, str):
        return ALL_LINEAR if value == "all-linear" else value
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise wrong(path, key, "a list of names or a pattern", value)
    return tuple(few(path, key, value))


def few(path: Path, key: str, value: Many) -> Many:
    if len(value) > MOST_NAMES:
        raise wrong(path, key, f"of at most {MOST_NAMES} entries", len(value))
    return value


def checked_layers_pattern(path: Path, value: Any) -> tuple[str, ...]:
    names = checked_names(path, "layers_pattern", [value] if isinstance(value, str) else value)
    return tuple(names)


def patterns(path: Path, key: str, given: Mapping[str, Any]) -> dict[str, Any]:
    value = given.get(key) or {}
    if not isinstance(value, dict):
        raise wrong(path, key, "an object", value)
    return few(path, key, value)


def wrong(path: Path, key: str, rule: str, value: Any) -> CheckpointError:
    return CheckpointError(
        f"{path}: {key} must be {rule}, got {shown(value)}: download the file again"
    )
