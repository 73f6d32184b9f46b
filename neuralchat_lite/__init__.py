"""Quantized chat models on an ordinary CPU. The names below are the public ones."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuralchat_lite.api import export, generate, load, merge, quantize, stream
    from neuralchat_lite.errors import (
        CacheError,
        CheckpointError,
        ConfigError,
        EngineError,
        HubError,
        NeuralchatError,
        PromptError,
        ResourceError,
        UnsupportedModelError,
    )
    from neuralchat_lite.generation.conversation import Conversation
    from neuralchat_lite.generation.handle import Handle
    from neuralchat_lite.generation.logprobs import TopLogprob
    from neuralchat_lite.generation.options import GenerationOptions
    from neuralchat_lite.generation.score import Score
    from neuralchat_lite.generation.sequence import Piece, Reply, Timings
    from neuralchat_lite.generation.stream import Stream
    from neuralchat_lite.mixed_precision import Sensitivity, sensitivity
    from neuralchat_lite.model import Model
    from neuralchat_lite.quantization.config import WeightOnlyQuantConfig

__all__ = [
    "CacheError",
    "CheckpointError",
    "ConfigError",
    "Conversation",
    "EngineError",
    "GenerationOptions",
    "Handle",
    "HubError",
    "Model",
    "NeuralchatError",
    "Piece",
    "PromptError",
    "Reply",
    "ResourceError",
    "Score",
    "Sensitivity",
    "Stream",
    "Timings",
    "TopLogprob",
    "UnsupportedModelError",
    "WeightOnlyQuantConfig",
    "export",
    "generate",
    "load",
    "merge",
    "quantize",
    "sensitivity",
    "stream",
]

# The module of each name that is not an error. Modules are imported on first use: torch takes a
# second, and `neuralchat-lite --help` needs none of it.
HOMES = {
    "Conversation": "generation.conversation",
    "GenerationOptions": "generation.options",
    "Handle": "generation.handle",
    "Model": "model",
    "Piece": "generation.sequence",
    "Reply": "generation.sequence",
    "Score": "generation.score",
    "Sensitivity": "mixed_precision",
    "Stream": "generation.stream",
    "Timings": "generation.sequence",
    "TopLogprob": "generation.logprobs",
    "WeightOnlyQuantConfig": "quantization.config",
    "export": "api",
    "generate": "api",
    "load": "api",
    "merge": "api",
    "quantize": "api",
    "sensitivity": "mixed_precision",
    "stream": "api",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return installed_version()
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def installed_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(__name__)
    except PackageNotFoundError:  # run from a source tree
        return "0+not-installed"
