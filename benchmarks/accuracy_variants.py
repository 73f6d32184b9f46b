"""Who is measured: an engine and a way to hold the weights is a row of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import neuralchat_lite as ncl
from neuralchat_lite.errors import ConfigError


@dataclass(frozen=True)
class Variant:
    """options: of `neuralchat_lite.load`"""

    engine: str
    name: str
    options: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.engine}:{self.name}"


def native(name: str, **options: Any) -> Variant:
    return Variant("neuralchat_lite", name, options)


def weights(weight_dtype: str, **options: Any) -> dict[str, Any]:
    """What `load` takes; an engine has its own values for what is not said here."""
    return {"quantization_config": {"weight_dtype": weight_dtype, **options}}


def quantized(weight_dtype: str, group_size: int, compute_dtype: str = "bf16") -> Variant:
    group = "" if group_size == 32 else f"-g{group_size}"  # 32 is the library's default
    options = weights(weight_dtype, group_size=group_size, compute_dtype=compute_dtype)
    return native(f"{weight_dtype}{group}-{compute_dtype}", **options)


VARIANTS: tuple[Variant, ...] = (
    native("fp32", dtype="fp32"),
    native("bf16", dtype="bf16"),
    quantized("int8", 32),
    quantized("int8", 128),
    quantized("int4", 32),
    quantized("int4", 128),
    quantized("int4", 32, "fp32"),
    quantized("int4", 32, "int8"),
    Variant("transformers", "fp32", {"engine": "torch", "dtype": "fp32"}),
    Variant("transformers", "bf16", {"engine": "torch", "dtype": "bf16"}),
    Variant("ipex", "bf16", {"engine": "ipex", "dtype": "bf16"}),
    Variant("ipex", "int8", {"engine": "ipex", **weights("int8")}),
    Variant("ipex", "int4", {"engine": "ipex", **weights("int4")}),
    Variant("itrex", "int8-int8", {"engine": "itrex", **weights("int8", compute_dtype="int8")}),
    Variant("itrex", "int4-int8", {"engine": "itrex", **weights("int4", compute_dtype="int8")}),
    Variant("itrex", "int4-fp32", {"engine": "itrex", **weights("int4", compute_dtype="fp32")}),
)
# Of a model's report, what says nothing about its scores.
NO_CONDITIONS = ("folder", "model_type", "chat_template", "load_s")
REFERENCE = VARIANTS[0]  # whose next-token distributions the others' are compared with


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
    """Raises what `neuralchat_lite.load` raises."""
    return ncl.load(model, context_length=context_length, **variant.options)


def conditions_of(model: ncl.Model) -> dict[str, Any]:
    """How this model computes: engine, precision, kernels, threads, versions, flags."""
    return {name: value for name, value in model.report().items() if name not in NO_CONDITIONS}
