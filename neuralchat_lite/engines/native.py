"""The engine of this library: `models.decoder` over mapped weights, with kernels of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuralchat_lite.kernels import native
from neuralchat_lite.kernels.kv_format import KVFormat
from neuralchat_lite.models.build import Weights, load_decoder
from neuralchat_lite.models.decoder import Decoder
from neuralchat_lite.packed.cache import cache_root
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig


@dataclass(frozen=True)
class NativeEngine:
    """See `engine.Engine`."""

    decoder: Decoder
    config: WeightOnlyQuantConfig | None

    def describe(self) -> dict[str, Any]:
        isa, threads = native.isa(), native.threads()
        return {
            "engine": "native",
            "kernels": self.decoder.kernels.name,
            "isa": isa.value,
            "isa_why": isa.why,
            "threads": int(threads.value),
            "threads_why": threads.why,
            "compute_dtype": self.decoder.compute_dtype,
            "kv_cache_dtype": self.decoder.kv_format.name,
            "weight_bytes": self.decoder.weight_bytes,
        }

    def close(self) -> None:
        """Does nothing: nothing is held outside this process. Mapped files close with the model."""


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
    config: WeightOnlyQuantConfig | None,
    *,
    compute_dtype: str,
    context_length: int | None,
    kv_format: KVFormat | None = None,
) -> NativeEngine:
    """Open the native engine over mapped weights, quantized or not."""
    decoder = load_decoder(
        weights, compute_dtype=compute_dtype, context_length=context_length, kv_format=kv_format
    )
    decoder.when_not_finite = when_not_finite(weights, config, compute_dtype)
    return NativeEngine(decoder, config)
