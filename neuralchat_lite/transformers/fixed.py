"""Weights that are mapped and never change: how a model answers to moving, casting and pickling."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch

from neuralchat_lite.api import Model
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.models.decoder import Decoder

DTYPES = {"bf16": torch.bfloat16, "int8": torch.bfloat16, "fp32": torch.float32}

Self = TypeVar("Self", bound="FixedWeights")


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
            f"the model cannot be pickled: pass its folder {self.folder} to the other process, "
            "which maps the same weights"
        )
