"""Weights that are mapped and never change: how a model answers to moving, casting and pickling."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.nn import Parameter

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.model import Model
from neuralchat_lite.models.decoder import Decoder

DTYPES = {"bf16": torch.bfloat16, "int8": torch.bfloat16, "fp32": torch.float32}

Self = TypeVar("Self", bound="FixedWeights")

NOT_AS_TENSORS = (
    "the weights are quantized and mapped, and not available as tensors; for those of the "
    "checkpoint use the model class of transformers, for a copy save_pretrained(folder)"
)
NO_BATCHES = (
    "there is no continuous batching; give `generate` a batch with padding on the left, or one "
    "prompt at a time"
)
MERGED_BEFORE = (
    "adapters are merged before quantizing; give them to from_pretrained(..., adapters=[folder])"
)
NO_TRAINING = "this library does not train; use the model class of transformers"
NEVER_CHANGED = (
    "the native weights are mapped and never changed; change the checkpoint with the model class "
    "of transformers first"
)
# Methods of a model of transformers -> why there is no such thing here, and what to do instead.
REFUSED = {
    "add_adapter": MERGED_BEFORE,
    "load_adapter": MERGED_BEFORE,
    "continuous_batching_context_manager": NO_BATCHES,
    "generate_batch": NO_BATCHES,
    "init_continuous_batching": NO_BATCHES,
    "push_to_hub": "save to a folder, and upload it with huggingface_hub",
    "load_state_dict": NEVER_CHANGED,
    "set_input_embeddings": NEVER_CHANGED,
    "set_output_embeddings": NEVER_CHANGED,
    "to_empty": NEVER_CHANGED,
    "state_dict": NOT_AS_TENSORS,
    "dequantize": NOT_AS_TENSORS,
    "get_parameter": NOT_AS_TENSORS,
    "gradient_checkpointing_enable": NO_TRAINING,
}


def refused(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise ConfigError(f"{name} is not supported: {REFUSED[name]}")

    method.__name__, method.__doc__ = name, f"Raises ConfigError: {REFUSED[name]}."
    return method


class FixedWeights:
    """The methods of a PyTorch module that would move, change or copy weights.

    A request for what the model already is returns the model. Any other raises ConfigError.
    """

    native: Model
    decoder: Decoder

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the computation; bfloat16 also stands for int8 activations."""
        return DTYPES[self.decoder.compute_dtype]

    @property
    def folder(self) -> Path:
        """The folder of the weights; for a quantized model it is in the cache."""
        return self.native.folder

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Parameter]]:
        """Names, shapes, dtype and device of the checkpoint's weights, before quantizing. The
        values are NaN and take no memory: the weights are not available as tensors."""
        if "decoder" not in self.__dict__:  # while it is being made
            return
        unknown = torch.full((), math.nan, dtype=self.dtype)
        architecture = self.decoder.architecture
        for spec in architecture.tensors():
            if not (architecture.tied and spec.role == "lm_head"):
                yield spec.name, Parameter(unknown.expand(spec.shape), requires_grad=False)

    def requires_grad_(self: Self, requires_grad: bool = True) -> Self:
        if requires_grad:
            raise ConfigError(
                "the native weights are mapped and never changed, so they have no gradients: train "
                "with the model class of transformers, or train a LoRA adapter of the checkpoint"
            )
        return self

    def xpu(self: Self, *args: Any, **kwargs: Any) -> Self:
        return self.to("xpu")

    def to(self: Self, *args: Any, **kwargs: Any) -> Self:
        """The model itself. Raises ConfigError for another device or dtype."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type != "cpu":
            raise ConfigError(
                f"device {str(device)!r} is not a CPU, and this library runs on CPUs: use 'cpu'"
            )
        if dtype is not None and dtype != self.dtype:
            raise ConfigError(
                f"the weights cannot be cast to {dtype}: load the model with another "
                "compute_dtype, or with another dtype if it is not quantized"
            )
        return self

    def type(self: Self, dst_type: Any) -> Self:
        return self.to(dst_type)

    def double(self: Self) -> Self:
        return self.to(torch.float64)

    def half(self: Self, *args: Any) -> Self:
        return self.to(torch.float16)

    def float(self: Self, *args: Any) -> Self:
        return self.to(torch.float32)

    def bfloat16(self: Self, *args: Any) -> Self:
        return self.to(torch.bfloat16)

    def cuda(self: Self, *args: Any, **kwargs: Any) -> Self:
        return self.to("cuda")

    def get_input_embeddings(self) -> Any:
        raise ConfigError(
            "the native weights are mapped and never changed, so embeddings are not available and "
            "cannot be resized: change the checkpoint with the model class of transformers first"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise ConfigError(
            f"the model cannot be pickled: pass its folder {self.folder} to the other process, and "
            "load it there with from_pretrained, which maps the same weights; to keep a copy use "
            "save_pretrained(folder)"
        )


for _name in REFUSED:
    setattr(FixedWeights, _name, refused(_name))
