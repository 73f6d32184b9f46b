"""What is added to the logits before a token is chosen: biases, penalties and the user's own.

Each is called as transformers' LogitsProcessor objects are: ids [1, n] and scores [1, vocab] give
scores [1, vocab]. They are transformers' own where it has them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.generation.option_rules import LogitsProcessor
from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.values import shown


@dataclass(frozen=True)
class Answer:
    """Where an answer begins, and what may end it.

    begins: tokens before it
    ends: ids that end it
    """

    begins: int = 0
    ends: Collection[int] = ()


class OccurrencePenalties:
    """`logit - count * frequency - (count > 0) * presence`, over the tokens of the answer.

    Source: https://platform.openai.com/docs/api-reference/parameter-details
    """

    def __init__(self, presence: float, frequency: float, begins: int) -> None:
        """begins: tokens before the answer, which do not count"""
        self.presence, self.frequency, self.begins = presence, frequency, begins

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        occurred, counts = np.unique(ids[0, self.begins :].numpy(), return_counts=True)
        lowered = scores.clone()
        # In numpy, as in `sampling`: no thread of torch is woken.
        lowered.numpy()[0, occurred] -= (counts * self.frequency + self.presence).astype(np.float32)
        return lowered


class LaterEnd:
    """No token ends the answer before it has so many; of no effect on later ones."""

    def __init__(self, answer: Answer, min_new_tokens: int) -> None:
        from transformers import MinNewTokensLengthLogitsProcessor

        self.hide_ends = MinNewTokensLengthLogitsProcessor(
            answer.begins, min_new_tokens, sorted(answer.ends)
        )

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        hidden: Tensor = self.hide_ends(ids, scores)
        return hidden


class UsersOwn:
    """A processor that the user gives: it gets scores of its own, and its result is checked."""

    def __init__(self, processor: LogitsProcessor) -> None:
        self.processor = processor

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Raises what the processor raises, and ConfigError for a result that is no scores."""
        found = self.processor(ids, scores.clone())
        if not isinstance(found, Tensor) or found.shape != scores.shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise self.refused(f"must return a tensor of shape {tuple(scores.shape)}, got {got}")
        values = found.detach().float().numpy()
        if np.isnan(values).any() or np.isposinf(values).any() or not np.isfinite(values).any():
            raise self.refused(
                "must return numbers, or -inf for what may not be chosen, but not for all tokens; "
                f"got {int(np.isfinite(values).sum())} finite ones of {values.size}"
            )
        return torch.from_numpy(values)

    def refused(self, rule: str) -> ConfigError:
        name = getattr(self.processor, "__name__", type(self.processor).__name__)
        return ConfigError(f"the logits processor {shown(name)} {rule}: correct it or leave it out")


def bias(options: GenerationOptions, answer: Answer) -> list[LogitsProcessor]:
    from transformers import SequenceBiasLogitsProcessor

    biases: Any = [[[token], float(value)] for token, value in (options.logit_bias or {}).items()]
    return [SequenceBiasLogitsProcessor(biases)]


def repetition(options: GenerationOptions, answer: Answer) -> list[LogitsProcessor]:
    from transformers import RepetitionPenaltyLogitsProcessor

    return [RepetitionPenaltyLogitsProcessor(float(options.repetition_penalty))]


def occurrence(options: GenerationOptions, answer: Answer) -> list[LogitsProcessor]:
    return [OccurrencePenalties(options.presence_penalty, options.frequency_penalty, answer.begins)]


def later_end(options: GenerationOptions, answer: Answer) -> list[LogitsProcessor]:
    return [LaterEnd(answer, options.min_new_tokens)] if answer.ends else []


def users_own(options: GenerationOptions, answer: Answer) -> list[LogitsProcessor]:
    return [UsersOwn(processor) for processor in options.logits_processors]


# Whether options ask for it, and what it is then: in the order in which they are called, which is
# transformers'. It calls the user's own last, and then those of sampling.
PENALTIES: tuple[
    tuple[
        Callable[[GenerationOptions], Any],
        Callable[[GenerationOptions, Answer], list[LogitsProcessor]],
    ],
    ...,
] = (
    (lambda options: options.logit_bias, bias),
    (lambda options: options.repetition_penalty != 1.0, repetition),
    (lambda options: options.presence_penalty or options.frequency_penalty, occurrence),
    (lambda options: options.min_new_tokens, later_end),
    (lambda options: options.logits_processors, users_own),
)


def penalties(options: GenerationOptions, answer: Answer) -> list[LogitsProcessor]:
    """Those that the options ask for, in order."""
    return [each for asked, make in PENALTIES if asked(options) for each in make(options, answer)]
