"""The engine of this library: `models.decoder` over mapped weights, with kernels of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from neuralchat_lite.kernels import native
from neuralchat_lite.kernels.kv_format import KVFormat
from neuralchat_lite.kernels.layout import SCALE_DTYPES, PackedMatrix
from neuralchat_lite.kernels.runtime import PRODUCTS, UNQUANTIZED, product
from neuralchat_lite.models.build import Weights, load_decoder
from neuralchat_lite.models.decoder import Decoder
from neuralchat_lite.packed.cache import cache_root
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.quantization.levels import LEVELS


@dataclass(frozen=True)
class NativeEngine:
    """See `engine.Engine`."""

    decoder: Decoder
    config: WeightOnlyQuantConfig | None

    def products(self) -> dict[str, dict[str, str]]:
        """What runs each kind of product that this model has: "int4 x bf16" -> instruction, set and
        why."""
        kinds = {
            kind
            for modules in self.decoder.architecture.products()
            for kind in kinds_of(modules, self.config)
        }
        return {
            f"{weights} x {compute}": asdict(product(weights, compute))
            for weights, compute in PRODUCTS
            if (weights, compute) in kinds
        }

    def describe(self) -> dict[str, Any]:
        isa, threads = native.isa(), native.threads()
        taken = self.decoder.compute_dtype
        return {
            "engine": "native",
            "kernels": self.decoder.kernels.name,
            "isa": isa.value,
            "isa_why": isa.why,
            "threads": int(threads.value),
            "threads_why": threads.why,
            "compute_dtype_asked": self.config.compute_dtype if self.config else taken,
            "compute_dtype": taken,
            "kv_cache_dtype": self.decoder.kv_format.name,
            "products": self.products(),
            "weight_bytes": self.decoder.weight_bytes,
            "embedding": type_of(self.decoder.plan.embedding),
            "embedding_bytes": self.decoder.table_bytes,
        }

    def close(self) -> None:
        """Does nothing: nothing is held outside this process. Mapped files close with the model."""


def type_of(matrix: PackedMatrix | Tensor) -> str:
    """The type of a matrix' numbers: "int8" or "int4" of codes, else that of the floats."""
    if isinstance(matrix, PackedMatrix):
        return matrix.weight_dtype
    return next(name for name, dtype in SCALE_DTYPES.items() if dtype == matrix.dtype)


def kinds_of(
    modules: Sequence[str], config: WeightOnlyQuantConfig | None
) -> Iterator[tuple[str, str]]:
    """(weights, activations), of PRODUCTS, of each of the modules that share an input."""
    for module in modules:
        weight_dtype = None if config is None else config.dtype_of(module)
        if config is None or weight_dtype is None:
            yield UNQUANTIZED, "fp32"
        else:
            yield LEVELS[weight_dtype].stored, config.compute_together(*modules)


def when_not_finite(
    weights: Weights, config: WeightOnlyQuantConfig | None, compute_dtype: str
) -> str:
    """What to do when logits are NaN or infinite: which files to check, and whether a wider
    precision is left."""
    if config is None:
        wider = "" if compute_dtype == "fp32" else ", or load it with dtype='fp32'"
        return f"the checkpoint has such weights, or they overflow; download it again{wider}"
    wider = "" if compute_dtype == "fp32" else ", or load it with compute_dtype='fp32'"
    folder: Path | None = getattr(weights, "folder", None)
    if folder is not None and folder.parent.resolve() == cache_root().resolve():
        return f"check the files with `neuralchat-lite cache verify {folder.name}`{wider}"
    return f"copy {folder} again, or quantize the checkpoint again{wider}"


def open_native(
    weights: Weights,
    precision: WeightOnlyQuantConfig | str,
    *,
    context_length: int | None,
    kv_format: KVFormat | None = None,
) -> NativeEngine:
    """Open the native engine over mapped weights.

    precision: how they are quantized, or the float type that a checkpoint's own are computed in
    kv_format: of keys and values; None: what belongs to the precision of activations
    """
    if isinstance(precision, str):
        config, compute, compute_of = None, precision, None
    else:
        config = precision
        compute, compute_of = config.compute_of(config.weight_dtype), config.compute_together
    decoder = load_decoder(
        weights,
        compute_dtype=compute,
        compute_of=compute_of,
        context_length=context_length,
        kv_format=kv_format,
    )
    decoder.when_not_finite = when_not_finite(weights, config, compute)
    return NativeEngine(decoder, config)
