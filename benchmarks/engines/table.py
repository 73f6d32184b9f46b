"""What is measured: a new engine is a file in `engines/` and a row of `ENGINES`.

A row's variants are what is compared: a format of the weights and a precision of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuralchat_lite.errors import ConfigError

FOLDER = Path(__file__).parent / "worker"


@dataclass(frozen=True)
class Variant:
    """One thing to measure.

    options: what the engine's file gets
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

    environment: name of the environment that it runs in; None for the harness' own
    variants: name -> (options, stored format)
    """

    title: str
    file: str
    environment: str | None
    variants: Mapping[str, tuple[Mapping[str, Any], str | None]]

    @property
    def path(self) -> Path:
        return FOLDER / self.file


def ours(weight_dtype: str, compute_dtype: str) -> tuple[dict[str, Any], str]:
    return {"weight_dtype": weight_dtype, "compute_dtype": compute_dtype}, weight_dtype


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


ENGINES: dict[str, Engine] = {
    "neuralchat_lite": Engine(
        "neuralchat_lite",
        "native.py",
        None,
        {
            f"{weight}-{compute}": ours(weight, compute)
            for weight in ("int4", "int8")
            for compute in ("bf16", "fp32", "int8")
        },
    ),
    "transformers": Engine(
        "transformers",
        "transformers.py",
        None,
        {"bf16": ({"dtype": "bfloat16"}, None), "fp32": ({"dtype": "float32"}, None)},
    ),
    "llamacpp": Engine(
        "llama.cpp",
        "llamacpp.py",
        "llamacpp",
        {kind: ({"type": kind}, kind) for kind in ("Q4_0", "Q4_K_M", "Q8_0")},
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
    return [
        Variant(name, variant, options, stored)
        for name, engine in ENGINES.items()
        for variant, (options, stored) in engine.variants.items()
    ]


def chosen_variants(asked: Iterable[str]) -> list[Variant]:
    """The variants of "engine" or "engine:variant", in the order of the table.

    Raises ConfigError, listing what there is, for a name that is not there.
    """
    names = set(asked)
    found = [v for v in all_variants() if {v.engine, v.label} & names]
    for name in names:
        if name not in ENGINES and name not in {variant.label for variant in found}:
            known = ENGINES.get(name.partition(":")[0])
            choices = ", ".join(known.variants if known else ENGINES)
            raise ConfigError(f"there is no engine or variant {name!r}: choose one of {choices}")
    return found
