"""Log-probabilities of tokens in the model's own distribution: before penalties and temperature.

In numpy and one row at a time, so that a row has the same bits in any company.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor


class TopLogprob(NamedTuple):
    """One of the likeliest tokens. token: its text, or its name if it is special"""

    token_id: int
    token: str
    logprob: float


def log_normalizer(logits: Tensor) -> float:
    """log(sum(exp(logits))) of one row [vocab], so that `logit - log_normalizer` is a
    log-probability. Sums are in fp64."""
    values = logits.numpy()
    largest = values.max()
    return float(largest) + math.log(np.exp(values - largest).sum(dtype=np.float64))


def logprob(logits: Tensor, token: int) -> float:
    """logits: [vocab] fp32"""
    return float(logits[token]) - log_normalizer(logits)


def logprobs_of(logits: Tensor, tokens: Sequence[int]) -> list[float]:
    """Of the token that comes after each row; logits: [len(tokens), vocab] fp32"""
    return [logprob(row, token) for row, token in zip(logits, tokens, strict=True)]


def likeliest(logits: Tensor, count: int, name: Callable[[int], str]) -> tuple[TopLogprob, ...]:
    """The `count` likeliest tokens of one row [vocab], or all if there are fewer; the likeliest
    first, and of equal ones the lower id.

    name: what a token id is called
    """
    if count == 0:
        return ()
    values = logits.numpy()
    if count < len(values):
        # A full sort of a large vocabulary would take as long as a layer of a small model.
        least = np.partition(values, len(values) - count)[len(values) - count]
        candidates = np.flatnonzero(values >= least)
    else:
        candidates = np.arange(len(values))
    order = candidates[np.argsort(-values[candidates], kind="stable")][:count]
    total = log_normalizer(logits)
    return tuple(TopLogprob(int(i), name(int(i)), float(values[i]) - total) for i in order)
