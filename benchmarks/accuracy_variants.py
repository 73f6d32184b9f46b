"""Who is measured: an engine and a way to hold the weights is a row of a table."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import neuralchat_lite as ncl
from neuralchat_lite.errors import ConfigError


@dataclass(frozen=True)
class Variant:
    """options: what the engine is opened with, besides the model"""

    engine: str
    name: str
    options: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.engine}:{self.name}"


def native(name: str, **options: Any) -> Variant:
    return Variant("neuralchat_lite", name, options)


def quantized(weight_dtype: str, group_size: int, compute_dtype: str = "bf16") -> Variant:
    config = {"weight_dtype": weight_dtype, "group_size": group_size}
    group = "" if group_size == 32 else f"-g{group_size}"  # 32 is the library's default
    return native(
        f"{weight_dtype}{group}-{compute_dtype}",
        quantization_config={**config, "compute_dtype": compute_dtype},
    )


VARIANTS: tuple[Variant, ...] = (
    native("fp32", dtype="fp32"),
    native("bf16", dtype="bf16"),
    quantized("int8", 32),
    quantized("int8", 128),
    quantized("int4", 32),
    quantized("int4", 128),
    quantized("int4", 32, "fp32"),
    quantized("int4", 32, "int8"),
    Variant("transformers", "fp32", {"dtype": "fp32"}),
    Variant("transformers", "bf16", {"dtype": "bf16"}),
)
REFERENCE = VARIANTS[0]  # whose next-token distributions the others' are compared with

# engine -> "module:function" that opens a model with a variant's options, as a `Model`
OPENERS = {
    "neuralchat_lite": "neuralchat_lite.api:load",
    "transformers": "benchmarks.transformers_decoder:load_transformers",
}


def chosen(names: str) -> tuple[Variant, ...]:
    """The variants that a text names: "engine:variant" or "engine", with commas between.

    Raises ConfigError that lists what there is.
    """
    found: dict[str, Variant] = {}
    for name in filter(None, (part.strip() for part in names.split(","))):
        matching = [v for v in VARIANTS if name in (str(v), v.engine)]
        if not matching:
            raise ConfigError(
                f"unknown variant {name!r}: expected an engine or one of "
                f"{', '.join(map(str, VARIANTS))}"
            )
        found |= {str(variant): variant for variant in matching}
    if not found:
        raise ConfigError("no variant is named: give --variants, or leave it out")
    return tuple(found.values())


def open_variant(variant: Variant, model: str, context_length: int | None) -> ncl.Model:
    module, _, function = OPENERS[variant.engine].partition(":")
    opener: Callable[..., ncl.Model] = getattr(importlib.import_module(module), function)
    return opener(model, context_length=context_length, **variant.options)


def conditions_of(model: ncl.Model) -> dict[str, Any]:
    """How this model computes: precision, kernels, threads."""
    if getattr(model.decoder, "kernels", None) is not None:
        report = model.report()
        names = ("compute_dtype", "weights", "kernels", "isa", "threads", "context_length")
        return {name: report[name] for name in names}
    import torch

    return {
        "dtype": str(getattr(getattr(model.decoder, "model", None), "dtype", "unknown")),
        "threads": torch.get_num_threads(),
        "context_length": model.decoder.context_length,
    }
