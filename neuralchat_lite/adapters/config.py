"""Reading a PEFT adapter_config.json: which modules have an adapter, and its rank and scale.

Modules are selected as PEFT selects them. An option that would change the merged weights and is not
implemented is refused by name. So a merge has the same weights as in PEFT, or it fails.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from neuralchat_lite.errors import CheckpointError, UnsupportedModelError
from neuralchat_lite.files.json_file import read_json
from neuralchat_lite.files.names import ADAPTER_CONFIG

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

ALL_LINEAR = r"model\.layers\..*"  # "all-linear" in PEFT: every matrix but the output head

Value = TypeVar("Value")
Names = str | tuple[str, ...]  # a pattern of whole names, or a list of their ends


@dataclass(frozen=True)
class AdapterConfig:
    """The content of an adapter_config.json, as `read_adapter_config` returns it.

    rank_pattern, alpha_pattern: exceptions by module: a pattern of the end of its name -> value
    targets, excluded: the modules with and without an adapter: a pattern, or ends of names
    layers: the numbers of the layers with an adapter, or None for all
    layers_pattern: the names before a layer's number, or none for any
    base: the name that the adapter gives its base model
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

    def rank_of(self, module: str) -> int:
        return first_match(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """The factor of B @ A: alpha / r, or alpha / sqrt(r) when rank-stabilised
        (arXiv:2312.03732)."""
        rank = self.rank_of(module)
        alpha = first_match(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)

    def has_target(self, module: str) -> bool:
        """Whether PEFT gives this module of the base an adapter."""
        if matches(self.excluded, module) or not matches(self.targets, module):
            return False
        # In PEFT, layers_to_transform does not restrict a pattern or a whole name.
        if self.layers is None or isinstance(self.targets, str) or module in self.targets:
            return True
        before = "|".join(self.layers_pattern) or r"[^.]*"
        numbered = re.match(rf"(?:.*?\.)?(?:{before})\.(\d+)\.", module)
        return numbered is not None and int(numbered[1]) in self.layers

    def unknown_targets(self, modules: Iterable[str]) -> list[str]:
        """The listed targets that match no module of a model."""
        if isinstance(self.targets, str):
            return []
        known = list(modules)
        return [end for end in self.targets if not any(matches((end,), name) for name in known)]


def matches(names: Names, module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def first_match(pattern: Mapping[str, Value], module: str, default: Value) -> Value:
    for end, value in pattern.items():
        if re.fullmatch(rf"(?:.*\.)?(?:{end})", module):
            return value
    return default


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
    if layers and not (isinstance(layers, list) and all(is_count(index, 0) for index in layers)):
        raise wrong(path, "layers_to_transform", "a list of layer numbers", layers)
    base = given.get("base_model_name_or_path")
    stabilised = given.get("use_rslora") or False
    if not isinstance(stabilised, bool):
        raise wrong(path, "use_rslora", "true or false", stabilised)
    config = AdapterConfig(
        rank=checked_rank(path, "r", given.get("r")),
        alpha=checked_alpha(path, "lora_alpha", given.get("lora_alpha")),
        rank_pattern={
            end: checked_rank(path, f"rank_pattern[{end!r}]", rank)
            for end, rank in patterns(path, "rank_pattern", given).items()
        },
        alpha_pattern={
            end: checked_alpha(path, f"alpha_pattern[{end!r}]", alpha)
            for end, alpha in patterns(path, "alpha_pattern", given).items()
        },
        rank_stabilised=stabilised,
        targets=checked_names(path, "target_modules", given.get("target_modules")),
        excluded=checked_names(path, "exclude_modules", given.get("exclude_modules") or []),
        layers=tuple(layers) if layers else None,
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
            f"{path}: peft_type {kind!r} is not supported, expected 'LORA': {REMEDY}"
        )
    bias = given.get("bias", "none")
    if bias != "none":
        raise UnsupportedModelError(
            f"{path}: bias {bias!r} means that biases were trained too, expected 'none': {REMEDY}"
        )
    start = given.get("init_lora_weights")
    if start not in NEUTRAL_INITIALISATIONS:
        raise UnsupportedModelError(
            f"{path}: init_lora_weights {start!r} changes the weights of the base model too: save "
            "the adapter as plain LoRA (peft's save_pretrained with "
            f"path_initial_model_for_weight_conversion), or {REMEDY}"
        )
    for key, value in given.items():
        if value and key not in READ and key not in WITHOUT_EFFECT:
            raise UnsupportedModelError(
                f"{path}: {key} {value!r} asks for more than W + scale * B @ A: {REMEDY}"
            )


def checked_rank(path: Path, key: str, value: Any) -> int:
    if not is_count(value, 1):
        raise wrong(path, key, "a positive integer", value)
    return int(value)


def checked_alpha(path: Path, key: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) < 1e30:
        raise wrong(path, key, "a number", value)
    return float(value)


def is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def checked_names(path: Path, key: str, value: Any) -> Names:
    if isinstance(value, str):
        return checked_pattern(path, key, ALL_LINEAR if value == "all-linear" else value)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise wrong(path, key, "a list of names or a pattern", value)
    return tuple(value)


def checked_layers_pattern(path: Path, value: Any) -> tuple[str, ...]:
    names = checked_names(path, "layers_pattern", [value] if isinstance(value, str) else value)
    return tuple(checked_pattern(path, "layers_pattern", name) for name in names)


def patterns(path: Path, key: str, given: Mapping[str, Any]) -> dict[str, Any]:
    value = given.get(key) or {}
    if not isinstance(value, dict):
        raise wrong(path, key, "an object", value)
    return {checked_pattern(path, key, end): entry for end, entry in value.items()}


def checked_pattern(path: Path, key: str, value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise wrong(path, key, f"a regular expression ({error})", value) from None
    return value


def wrong(path: Path, key: str, rule: str, value: Any) -> CheckpointError:
    return CheckpointError(f"{path}: {key} must be {rule}, got {value!r}: download the file again")
