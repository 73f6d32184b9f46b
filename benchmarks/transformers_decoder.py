"""A transformers model as a decoder, all logits included: what others are judged by."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import neuralchat_lite as ncl
from neuralchat_lite.api import load_tokenizer
from neuralchat_lite.model.decoder import checked_context
from neuralchat_lite.weights.config_json import read_architecture
from neuralchat_lite.weights.hub import resolve

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class GrowingCache:
    """transformers' cache with every position kept, whatever the window, so that it goes back."""

    def __init__(self) -> None:
        from transformers import DynamicCache

        self.keys_values: Any = DynamicCache()

    @property
    def length(self) -> int:
        return int(self.keys_values.get_seq_length())

    def can_truncate(self, length: int) -> bool:
        return 0 <= length <= self.length

    def truncate(self, length: int) -> None:
        if length == 0:
            self.__init__()  # type: ignore[misc]  # cropping to nothing is not offered
        elif length < self.length:
            self.keys_values.crop(length - self.length)  # how many to drop, as a negative number


class TransformersDecoder:
    """`neuralchat_lite.generation.Decoder` over `AutoModelForCausalLM`."""

    def __init__(self, folder: Path, dtype: str, context_length: int | None = None) -> None:
        from transformers import AutoModelForCausalLM

        self.architecture = read_architecture(folder)
        self.context_length = checked_context(self.architecture, context_length)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=DTYPES[dtype], local_files_only=True, trust_remote_code=False
        )
        self.model = model.eval()

    def new_cache(self, capacity: int = 256) -> GrowingCache:
        return GrowingCache()

    def forward(
        self, ids: Sequence[int] | Tensor, cache: GrowingCache, *, all_logits: bool = False
    ) -> Tensor:
        with torch.inference_mode():
            out = self.model(
                torch.as_tensor(ids)[None],
                past_key_values=cache.keys_values,
                use_cache=True,
                logits_to_keep=0 if all_logits else 1,
            )
        logits: Tensor = out.logits[0].float()
        return logits if all_logits else logits[-1]

    def bytes_per_token(self, context: int) -> int:
        """Weights alone: what a decoded token reads of the cache is not counted."""
        embedding = self.model.get_input_embeddings().weight
        tied = self.model.get_output_embeddings().weight is embedding
        whole = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return int(whole - (0 if tied else embedding.numel() * embedding.element_size()))


def load_transformers(model: str, dtype: str, context_length: int | None = None) -> ncl.Model:
    start = time.perf_counter()
    folder = resolve(model, None, None).folder
    decoder: Any = TransformersDecoder(folder, dtype, context_length)
    return ncl.Model(decoder, load_tokenizer(folder), folder, None, time.perf_counter() - start)
