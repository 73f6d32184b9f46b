"""One step of a transformers model, in old versions and new ones, over a cache that can go back.

It also runs in other environments, so it needs nothing but Python 3.9, torch and transformers 4.38.
Scripts there import it as `stepping`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache


class Positions:
    """Keys and values of all positions. Layers with a sliding window keep all of them too, so that
    the cache can go back to any length; the masks apply the window."""

    def __init__(self) -> None:
        self.kept: Any = DynamicCache()

    def settle(self, length: int) -> None:
        """Drop all positions after the first `length`. An interrupted step may have left them in
        the first layers only."""
        if length == 0:
            self.kept = DynamicCache()
        elif not hasattr(self.kept, "layers"):
            if self.kept.get_seq_length() > length:
                self.crop_lists(length)
        else:
            for layer in self.kept.layers:
                # A negative number is a count to remove. Version 5 changed the meaning of others.
                if layer.get_seq_length() > length:
                    layer.crop(length - layer.get_seq_length())
        self.check(length)

    def crop_lists(self, length: int) -> None:
        """`DynamicCache.crop` for versions that keep lists of tensors; 4.41 does not have it."""
        for kept in (self.kept.key_cache, self.kept.value_cache):
            for index, states in enumerate(kept):
                kept[index] = states[..., :length, :]
        self.kept._seen_tokens = length

    def check(self, length: int) -> None:
        found = self.kept.get_seq_length()
        if found != length:
            raise RuntimeError(
                f"the cache has {found} positions, expected {length}: this version of transformers "
                "is not supported"
            )


class Stepper:
    """Calls a model's `forward` with the argument names of its version."""

    def __init__(self, model: Any) -> None:
        self.model = model
        parameters = inspect.signature(model.forward).parameters
        # Renamed in the middle of version 5.
        self.cache_name = "cache" if "cache" in parameters else "past_key_values"
        # Logits of other tokens would take rows x vocabulary floats that are not needed.
        names = ("logits_to_keep", "num_logits_to_keep")
        self.last_only = {name: 1 for name in names if name in parameters}

    def __call__(
        self, ids: Sequence[int], positions: Positions, length: int, all_logits: bool = False
    ) -> torch.Tensor:
        """Feed ids after the first `length` positions.

        Returns the fp32 logits of the last token, [vocab], or of all tokens, [len(ids), vocab].
        """
        fewer = {} if all_logits else self.last_only
        output = self.run(self.model, ids, positions, length, **fewer)
        logits: torch.Tensor = output.logits[0].float()
        return logits if all_logits else logits[-1]

    def states(self, ids: Sequence[int], positions: Positions, length: int) -> torch.Tensor:
        """Feed ids as a call does. Returns what the last norm gives of all tokens, [len(ids),
        hidden] fp32."""
        output = self.run(self.model.base_model, ids, positions, length)
        states: torch.Tensor = output.last_hidden_state[0].float()
        return states

    def run(
        self, model: Any, ids: Sequence[int], positions: Positions, length: int, **options: Any
    ) -> Any:
        positions.settle(length)
        with torch.no_grad():
            output = model(
                input_ids=torch.tensor([list(ids)]),
                attention_mask=torch.ones((1, length + len(ids)), dtype=torch.long),
                use_cache=True,
                **{self.cache_name: positions.kept},
                **options,
            )
        positions.check(length + len(ids))
        return output
