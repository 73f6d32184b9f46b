"""A drop-in replacement for intel_extension_for_transformers.transformers, with the same names.

    from neuralchat_lite.transformers import AutoModelForCausalLM, WeightOnlyQuantConfig

`AutoModelForCausalLM`, `AutoTokenizer`, `pipeline` and the configurations belong to this library.
Streamers and stopping criteria are those of transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import (
        AutoConfig,
        GenerationConfig,
        LogitsProcessor,
        LogitsProcessorList,
        StoppingCriteria,
        StoppingCriteriaList,
        TextIteratorStreamer,
        TextStreamer,
        set_seed,
    )

    from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
    from neuralchat_lite.transformers.auto import AutoModelForCausalLM, pipeline
    from neuralchat_lite.transformers.cache import NativeCache
    from neuralchat_lite.transformers.configs import (
        AutoRoundConfig,
        AwqConfig,
        GPTQConfig,
        RtnConfig,
        TeqConfig,
    )
    from neuralchat_lite.transformers.modeling import NativeForCausalLM
    from neuralchat_lite.transformers.tokenizer import AutoTokenizer

__all__ = [
    "AutoConfig",
    "AutoModelForCausalLM",
    "AutoRoundConfig",
    "AutoTokenizer",
    "AwqConfig",
    "GPTQConfig",
    "GenerationConfig",
    "LogitsProcessor",
    "LogitsProcessorList",
    "NativeCache",
    "NativeForCausalLM",
    "RtnConfig",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "TeqConfig",
    "TextIteratorStreamer",
    "TextStreamer",
    "WeightOnlyQuantConfig",
    "pipeline",
    "set_seed",
]

# The modules of our own names. Every other public name comes from transformers.
HOMES = {
    "AutoModelForCausalLM": "neuralchat_lite.transformers.auto",
    "AutoRoundConfig": "neuralchat_lite.transformers.configs",
    "AutoTokenizer": "neuralchat_lite.transformers.tokenizer",
    "AwqConfig": "neuralchat_lite.transformers.configs",
    "GPTQConfig": "neuralchat_lite.transformers.configs",
    "NativeCache": "neuralchat_lite.transformers.cache",
    "NativeForCausalLM": "neuralchat_lite.transformers.modeling",
    "RtnConfig": "neuralchat_lite.transformers.configs",
    "TeqConfig": "neuralchat_lite.transformers.configs",
    "WeightOnlyQuantConfig": "neuralchat_lite.quantization.config",
    "pipeline": "neuralchat_lite.transformers.auto",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}: import it from transformers if it "
            "is there"
        )
    return getattr(import_module(HOMES.get(name, "transformers")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
