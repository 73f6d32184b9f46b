"""A configuration in one line for people, so that two of them can be told apart."""

from __future__ import annotations

from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.quantization.settings import Override
from neuralchat_lite.quantization.spellings import DEFAULTS

SHOWN = 3  # overrides or modules that are named


def described(config: WeightOnlyQuantConfig) -> str:
    """What decides the bytes: "int4 affine8 g32, head int8, GPTQ act_order=True, lm_head=int4"."""
    parts = [f"{config.weight_dtype} {config.scheme} {group_name(config.group_size)}"]
    if config.scale_dtype != DEFAULTS["scale_dtype"]:
        parts.append(f"{config.scale_dtype} scales")
    if config.lm_head != config.weight_dtype and config.override_of("lm_head") is None:
        parts.append(f"head {config.lm_head}")
    if config.algorithm != DEFAULTS["algorithm"]:
        settings = [f"{name}={value}" for name, value in config.algorithm_args.items()]
        parts.append(" ".join([config.algorithm, *settings]))
    parts += first([override_text(each) for each in config.overrides], "overrides")
    kept = [f"{name} kept" for name in config.modules_to_not_convert]
    return ", ".join(parts + first(kept, "modules kept"))


def group_name(size: int) -> str:
    return "row" if size == -1 else f"g{size}"


def override_text(override: Override) -> str:
    """As the command line takes it: "model.layers.0.*=int8,group_size=64"."""
    given = override.given()
    weight_dtype = given.pop("weight_dtype", None)
    options = [f"{name}={value}" for name, value in given.items()]
    return f"{override.pattern}={','.join([weight_dtype, *options] if weight_dtype else options)}"


def first(texts: list[str], what: str) -> list[str]:
    """The first of some texts, and how many more there are."""
    if len(texts) <= SHOWN + 1:
        return texts
    return [*texts[:SHOWN], f"{len(texts) - SHOWN} more {what}"]
