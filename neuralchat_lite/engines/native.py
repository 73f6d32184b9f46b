"""The engine of this library: `models.decoder` over mapped weights, with kernels of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from neuralchat_lite.kernels import native
from neuralchat_lite.models.build import Weights, load_decoder
from neuralchat_lite.models.decoder import Decoder
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
            "weight_bytes": self.decoder.weight_bytes,
        }

    def close(self) -> None:
        """Does nothing: nothing is held outside this process. Mapped files close with the model."""


def open_native(
    weights: Weights,
    config: WeightOnlyQuantConfig | None,
    *,
    compute_dtype: str,
    context_length: int | None,
) -> NativeEngine:
    """Open the native engine over mapped weights, quantized or not."""
    decoder = load_decoder(weights, compute_dtype=compute_dtype, context_length=context_length)
    return NativeEngine(decoder, config)
