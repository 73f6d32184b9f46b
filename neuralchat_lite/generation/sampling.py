"""Choosing a token from logits: the likeliest, or a draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralchat_lite.engines.engine import WHEN_NOT_FINITE
from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.generation.options import GenerationOptions


class Chooser:
    """Choose a token from logits: the likeliest, or a draw with a generator of its own.

    Penalty and filters are transformers' own processors, in transformers' order.
    """

    def __init__(self, options: GenerationOptions, when_not_finite: str = WHEN_NOT_FINITE) -> None:
        """when_not_finite: what the user can do about logits that are NaN or infinite"""
        self.when_not_finite = when_not_finite
        self.greedy = options.temperature == 0
        self.penalties: list[Any] = []
        self.filters: list[Any] = []
        if options.repetition_penalty != 1.0:
            from transformers import RepetitionPenaltyLogitsProcessor

            self.penalties.append(
                RepetitionPenaltyLogitsProcessor(float(options.repetition_penalty))
            )
        if not self.greedy:
            self.filters = sampling_filters(options)
            self.generator = torch.Generator()
            if options.seed is None:
                self.generator.seed()
            else:
                self.generator.manual_seed(options.seed)

    def __call__(self, logits: Tensor, ids: Sequence[int]) -> int:
        """logits: [vocab] fp32; ids: all tokens before. Raises CheckpointError for NaN or inf."""
        # In numpy: torch would wake its threads for a large vocabulary, and while they spin
        # they take the cores from ours (12 ms against 0.1 ms, vocabulary 152k, busy machine).
        finite = np.isfinite(logits.numpy())
        if not finite.all():
            raise CheckpointError(
                f"{int((~finite).sum())} of {len(logits)} logits after {len(ids)} tokens are NaN "
                f"or infinite, expected finite numbers: {self.when_not_finite}"
            )
        if self.greedy and not self.penalties:
            return int(logits.numpy().argmax())
        scores = logits[None]
        if self.penalties:
            before = torch.tensor([list(ids)])
            for penalty in self.penalties:
                scores = penalty(before, scores)
        if self.greedy:
            return int(scores.argmax())
        for narrow in self.filters:
            scores = narrow(None, scores)
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self.generator))


def sampling_filters(options: GenerationOptions) -> list[Any]:
    import transformers as hf

    filters: list[Any] = []
    if options.temperature != 1.0:
        filters.append(hf.TemperatureLogitsWarper(float(options.temperature)))
    if options.top_k:
        filters.append(hf.TopKLogitsWarper(options.top_k))
    if options.top_p < 1.0:
        filters.append(hf.TopPLogitsWarper(float(options.top_p)))
    if options.min_p > 0.0:
        filters.append(hf.MinPLogitsWarper(float(options.min_p)))
    return filters
