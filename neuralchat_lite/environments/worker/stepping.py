"""One step of a transformers model, of old versions and new ones, over a cache that can go back.

It also runs in other environments, so it needs nothing but Python 3.9, torch and transformers 4.38;
scripts there import it as `stepping`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache


class Positions:
    """Keys and values. They are kept for every position, of windowed layers too (their windows are
    in the masks), so that any length can be gone back to."""

    def __init__(self) -> None:
        self.kept: Any = DynamicCache()

    def settle(self, length: int) -> None:
        """Drop what lies behind `length`: taken back, or left half done by an interruption, when
        the first layers have it and the others don't."""
        if length == 0:
            self.kept = DynamicCache()
        elif not hasattr(self.kept, "layers"):
            if self.kept.get_seq_length() > length:
                self.crop_lists(length)
        else:
            for layer in self.kept.layers:
                # Negative: a count to remove. A positive one has lost its meaning in version 5.
                if layer.get_seq_length() > length:
                    layer.crop(length - layer.get_seq_length())
        self.check(length)

    def crop_lists(self, length: int) -> None:
        """`DynamicCache.crop` of versions that keep lists of tensors; 4.41 has none yet."""
        for kept in (self.kept.key_cache, self.kept.value_cache):
            for index, states in enumerate(kept):
                kept[index] = states[..., :length, :]
        self.kept._seen_tokens = length

    def check(self, length: int) -> None:
        found = self.kept.get_seq_length()
        if found != length:
            raise RuntimeError(
                f"the cache has {found} positions, expected {length}: "
                "this version of transformers keeps them in a way that is not known here"
            )


class Stepper:
    """Feeds a model's `forward` by the names that its version has."""

    def __init__(self, model: Any) -> None:
        self.model = model
        parameters = inspect.signature(model.forward).parameters
        # Its name since the middle of version 5.
        self.cache_name = "cache" if "cache" in parameters else "past_key_values"
        # The other logits would be rows x vocabulary floats for nothing.
        names = ("logits_to_keep", "num_logits_to_keep")
        self.last_only = {name: 1 for name in names if name in parameters}

    def __call__(
        self, ids: Sequence[int], positions: Positions, length: int, all_logits: bool = False
    ) -> torch.Tensor:
        """Feed ids after the first `length` positions.

        Returns the fp32 logits of the last token, [vocab], or of each, [len(ids), vocab].
        """
        positions.settle(length)
        with torch.no_grad():
            output = self.model(
                input_ids=torch.tensor([list(ids)]),
                attention_mask=torch.ones((1, length + len(ids)), dtype=torch.long),
                use_cache=True,
                **{self.cache_name: positions.kept},
                **({} if all_logits else self.last_only),
            )
        positions.check(length + len(ids))
        logits: torch.Tensor = output.logits[0].float()
        return logits if all_logits else logits[-1]
