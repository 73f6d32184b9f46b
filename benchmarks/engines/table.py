"""The table of engines: a new engine is a file in `worker/` and a row of `ENGINES`.

A row's variants are what is compared: a format of the weights and a precision of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuralchat_lite.errors import ConfigError

FOLDER = Path(__file__).parent / "worker"


@dataclass(frozen=True)
class Variant:
    """One configuration of an engine, to be timed or scored.

    options: what loads it: options of the engine's file, or arguments of `neuralchat_lite.load`
        where the library itself runs the engine in this process (see `Engine.loaded`)
    stored: name of the format that `prepare` writes, shared by variants that load the same files;
        None when the engine loads the checkpoint itself
    """

    engine: str
    name: str
    options: Mapping[str, Any]
    stored: str | None

    @property
    def label(self) -> str:
        return f"{self.engine}:{self.name}"


@dataclass(frozen=True)
class Engine:
    """A row of the table.

    file: in the folder `worker`
    environment: name of the environment that it runs in; None for the harness' own
    variants: name -> (options of its file, stored format), for a worker
    loaded: name -> arguments of `neuralchat_lite.load`, for the scores of an engine that the
        library runs itself; None where `variants` are scored
    as_is: as `variants`, for a GGUF file instead of a checkpoint; empty where it is not read
    """

    title: str
    file: str
    environment: str | None
    variants: Mapping[str, tuple[Mapping[str, Any], str | None]]
    loaded: Mapping[str, Mapping[str, Any]] | None = None
    as_is: Mapping[str, tuple[Mapping[str, Any], str | None]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return FOLDER / self.file


# Our formats of weights that are timed: name -> options of a quantization config.
OURS: dict[str, dict[str, Any]] = {
    "int4": {"weight_dtype": "int4"},
    "int4-clip": {"weight_dtype": "int4_clip"},
    "int4-g128": {"weight_dtype": "int4", "group_size": 128},
    "int8": {"weight_dtype": "int8"},
}


def ours(weights: str, compute_dtype: str) -> tuple[dict[str, Any], str]:
    return {"quantization": OURS[weights], "compute_dtype": compute_dtype}, weights


def woq(weight_dtype: str) -> dict[str, Any]:
    return {
        "api": "weight_only",
        "weight_dtype": weight_dtype,
        "lowp_mode": "BF16",
        "group_size": -1,
    }


def qbits(bits: int, weight_dtype: str, compute_dtype: str) -> dict[str, Any]:
    return {
        "bits": bits,
        "weight_dtype": weight_dtype,
        "compute_dtype": compute_dtype,
        "group_size": 32,
    }


def quantized(weight_dtype: str, **options: Any) -> dict[str, Any]:
    """Arguments of `neuralchat_lite.load`; an engine has its own values for what is left out."""
    return {"quantization_config": {"weight_dtype": weight_dtype, **options}}


def grouped(weight_dtype: str, group_size: int, **options: Any) -> dict[str, Any]:
    return quantized(weight_dtype, group_size=group_size, **{"compute_dtype": "bf16", **options})


ENGINES: dict[str, Engine] = {
    "neuralchat_lite": Engine(
        "neuralchat_lite",
        "native.py",
        None,
        {
            f"{weight}-{compute}": ours(weight, compute)
            for weight in ("int4", "int8")
            for compute in ("bf16", "fp32", "int8")
        }
        | {f"{weights}-auto": ours(weights, "auto") for weights in OURS}
        | {f"{weights}-bf16": ours(weights, "bf16") for weights in OURS},
        {
            "fp32": {"dtype": "fp32"},
            "bf16": {"dtype": "bf16"},
            "int8-bf16": grouped("int8", 32),
            "int8-int8": grouped("int8", 32, compute_dtype="int8"),
            "int8-g128-bf16": grouped("int8", 128),
            "int4-bf16": grouped("int4", 32),
            "int4-g128-bf16": grouped("int4", 128),
            "int4-clip-bf16": grouped("int4_clip", 32),
            "int4-clip-g128-bf16": grouped("int4_clip", 128),
            "int4-fullrange-bf16": grouped("int4_fullrange", 32),
            "int4-asym-bf16": grouped("int4", 32, scheme="asym"),
            "int4-fp32": grouped("int4", 32, compute_dtype="fp32"),
            "int4-int8": grouped("int4", 32, compute_dtype="int8"),
            "int4-auto": grouped("int4", 32, compute_dtype="auto"),
            "int4-clip-auto": grouped("int4_clip", 32, compute_dtype="auto"),
            "int4-g128-auto": grouped("int4", 128, compute_dtype="auto"),
            "int8-auto": grouped("int8", 32, compute_dtype="auto"),
        },
        as_is={
            "as-is": ({"compute_dtype": "auto"}, "as-is"),
            "as-is-bf16": ({"compute_dtype": "bf16"}, "as-is"),
        },
    ),
    "transformers": Engine(
        "transformers",
        "transformers.py",
        None,
        {"bf16": ({"dtype": "bfloat16"}, None), "fp32": ({"dtype": "float32"}, None)},
        {
            "fp32": {"engine": "torch", "dtype": "fp32"},
            "bf16": {"engine": "torch", "dtype": "bf16"},
        },
    ),
    "llamacpp": Engine(
        "llama.cpp",
        "llamacpp.py",
        "llamacpp",
        {kind: ({"type": kind}, kind) for kind in ("Q4_0", "Q4_K_M", "Q8_0")},
        as_is={"as-is": ({}, None)},
    ),
    "openvino": Engine(
        "OpenVINO GenAI",
        "openvino.py",
        "openvino",
        {
            "int4": ({"bits": 4, "sym": True, "group_size": 128}, "int4-g128"),
            "int8": ({"bits": 8, "sym": False}, "int8"),
        },
    ),
    "onnxruntime": Engine(
        "ONNX Runtime GenAI",
        "onnxruntime.py",
        "onnxruntime",
        {"int4": ({"precision": "int4"}, "int4-b32")},
    ),
    "ipex": Engine(
        "Intel Extension for PyTorch",
        "ipex.py",
        "ipex",
        {
            "bf16": ({"api": "optimize"}, None),
            "bf16-llm": ({"api": "llm_optimize"}, None),
            "int8": (woq("INT8"), None),
            "int4": (woq("INT4"), None),
        },
        {
            "bf16": {"engine": "ipex", "dtype": "bf16"},
            "int8": {"engine": "ipex", **quantized("int8")},
            "int4": {"engine": "ipex", **quantized("int4")},
        },
    ),
    "itrex": Engine(
        "Intel Extension for Transformers",
        "itrex.py",
        "itrex",
        {
            "int4-int8": (qbits(4, "int4_clip", "int8"), None),
            "int4-fp32": (qbits(4, "int4_clip", "fp32"), None),
            "int8-int8": (qbits(8, "int8", "int8"), None),
        },
        {
            "int8-int8": {"engine": "itrex", **quantized("int8", compute_dtype="int8")},
            "int4-int8": {"engine": "itrex", **quantized("int4", compute_dtype="int8")},
            "int4-fp32": {"engine": "itrex", **quantized("int4", compute_dtype="fp32")},
        },
    ),
    "ctranslate2": Engine(
        "CTranslate2",
        "ctranslate2.py",
        "ctranslate2",
        {"int8": ({"compute_type": "int8"}, "int8")},
    ),
    "torchao": Engine(
        "torchao",
        "torchao.py",
        "torchao",
        {
            "int4": ({"weight_dtype": "int4", "group_size": 128}, None),
            "int8": ({"weight_dtype": "int8"}, None),
        },
    ),
}


def all_variants() -> list[Variant]:
    """What is timed with a checkpoint: every engine in a worker."""
    return [
        Variant(name, variant, options, stored)
        for name, engine in ENGINES.items()
        for variant, (options, stored) in engine.variants.items()
    ]


def file_variants() -> list[Variant]:
    """What is timed with a GGUF file."""
    return [
        Variant(name, variant, options, stored)
        for name, engine in ENGINES.items()
        for variant, (options, stored) in engine.as_is.items()
    ]


def scored_variants() -> list[Variant]:
    """What is scored: an engine that the library runs through `neuralchat_lite.load`, the others
    in a worker."""
    return [
        Variant(name, variant, options, None)
        for name, engine in ENGINES.items()
        for variant, options in (engine.loaded or {}).items()
    ] + [variant for variant in all_variants() if ENGINES[variant.engine].loaded is None]


def find_variants(names: Iterable[str], among: Sequence[Variant]) -> list[Variant]:
    """The variants of each "engine" or "engine:variant", in the order of the names.

    Raises ConfigError that lists the choices for an unknown name.
    """
    found: dict[str, Variant] = {}
    for name in names:
        matching = {
            variant.label: variant for variant in among if name in (variant.engine, variant.label)
        }
        if not matching:
            engine = name.partition(":")[0]
            choices = [variant.name for variant in among if variant.engine == engine]
            raise ConfigError(
                f"there is no engine or variant {name!r}: choose one of "
                f"{', '.join(choices or dict.fromkeys(variant.engine for variant in among))}"
            )
        found |= matching
    return list(found.values())


def chosen_variants(asked: Iterable[str], *, file: bool = False) -> list[Variant]:
    """The variants to time, in the order of the table. Raises ConfigError as `find_variants`.

    file: of a GGUF file instead of a checkpoint
    """
    among = file_variants() if file else all_variants()
    labels = {variant.label for variant in find_variants(asked, among)}
    return [variant for variant in among if variant.label in labels]
