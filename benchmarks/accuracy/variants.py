"""Who is measured: an engine and a way to hold the weights is a row of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import neuralchat_lite as ncl
from benchmarks.accuracy.rivals import open_rival
from benchmarks.engines import table as variants
from benchmarks.engines.environments import PRODUCT, is_ready
from neuralchat_lite.checkpoints.hub import resolve
from neuralchat_lite.errors import ConfigError

# What is asked when nobody is named, as far as it is installed: as in the full latency run.
DEFAULT = (
    "neuralchat_lite", "transformers:bf16", "ipex:bf16", "itrex:int4-int8", "llamacpp:Q4_0",
    "llamacpp:Q8_0", "openvino", "onnxruntime", "torchao:int4", "ctranslate2",
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """options: of `neuralchat_lite.load`; of a rival's engine file when `rival` says so"""

    engine: str
    name: str
    options: Mapping[str, Any]
    rival: variants.Variant | None = None

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


def rivals() -> list[Variant]:
    """The engines that the library does not run itself, as the latency table has them."""
    return [
        Variant(found.engine, found.name, found.options, found)
        for found in variants.all_variants()
        if variants.ENGINES[found.engine].environment not in (None, *PRODUCT)
    ]


VARIANTS: tuple[Variant, ...] = (
    native("fp32", dtype="fp32"),
    native("bf16", dtype="bf16"),
    quantized("int8", 32),
    quantized("int8", 128),
    quantized("int4", 32),
    quantized("int4", 128),
    native("int4-fullrange-bf16", **weights("int4_fullrange", group_size=32, compute_dtype="bf16")),
    native("int4-asym-bf16", **weights("int4", group_size=32, scheme="asym", compute_dtype="bf16")),
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
    *rivals(),
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


def installed(names: Sequence[str], say: Callable[[str], None]) -> tuple[Variant, ...]:
    """Of these variants those whose engines are installed; `say` hears of the others."""
    found = chosen(",".join(names))
    ready = {engine: is_ready(engine) for engine in dict.fromkeys(v.engine for v in found)}
    for engine in (engine for engine, there in ready.items() if not there):
        say(f"{engine} is not installed and left out: `python -m benchmarks setup {engine}`")
    return tuple(variant for variant in found if ready[variant.engine])


def model_name(model: str) -> str:
    """What rows call a model: a hub name, or its folder's name, which says more than "model"."""
    if not Path(model).exists():
        return model
    folder = Path(model).resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def open_variant(
    variant: Variant, model: str, sha256: str, context_length: int | None
) -> ncl.Model:
    """Raises what `neuralchat_lite.load` raises.

    sha256: of all that the checkpoint holds
    """
    if variant.rival is not None:
        folder = resolve(model, None, None).folder
        return open_rival(variant.rival, folder, model_name(model), sha256, context_length)
    return ncl.load(model, context_length=context_length, **variant.options)


def conditions_of(model: ncl.Model) -> dict[str, Any]:
    """How this model computes: engine, precision, kernels, threads, versions, flags."""
    return {name: value for name, value in model.report().items() if name not in NO_CONDITIONS}
