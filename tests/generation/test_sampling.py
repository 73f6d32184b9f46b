"""Tokens that are drawn, against their probabilities in plain arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.generation.sampling import Chooser

Options = GenerationOptions


def shares(options: GenerationOptions, logits: torch.Tensor, count: int = 4000) -> torch.Tensor:
    choose = Chooser(options)
    drawn = torch.tensor([choose(logits, [0]) for _ in range(count)])
    return torch.bincount(drawn, minlength=len(logits)) / count


LOGITS = torch.tensor([2.0, 1.5, 0.5, 0.0, -1.0, -3.0])


def slow_shares(temperature: float, keep: Callable[[torch.Tensor], list[int]]) -> torch.Tensor:
    """The oracle: probabilities in float64, those not kept struck out, the rest scaled up."""
    weights = torch.tensor([math.exp(value / temperature) for value in LOGITS.tolist()])
    weights /= weights.sum()
    kept = torch.zeros_like(weights)
    kept[keep(weights)] = weights[keep(weights)]
    return kept / kept.sum()


@pytest.mark.parametrize(
    ("options", "keep"),
    [
        ({}, lambda w: list(range(6))),
        ({"top_k": 2}, lambda w: [0, 1]),
        ({"min_p": 0.2}, lambda w: [i for i in range(6) if w[i] >= 0.2 * w.max()]),
        ({"top_p": 0.7}, lambda w: [i for i in range(6) if w[:i].sum() < 0.7]),
    ],
)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_tokens_are_drawn_with_the_probabilities_that_the_options_say(
    options: dict[str, Any],
    keep: Callable[[torch.Tensor], list[int]],
    temperature: float,
) -> None:
    drawn = shares(Options(temperature=temperature, seed=0, **options), LOGITS)
    wanted = slow_shares(temperature, keep)
    assert torch.equal(drawn > 0, wanted > 0.0001)
    assert (drawn - wanted).abs().max() < 0.03  # four standard deviations of 4000 draws


def test_tiny_temperature_is_greedy_and_does_not_overflow() -> None:
    options = Options(temperature=1e-6, seed=0)
    assert shares(options, LOGITS * 1e6, 10).tolist() == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("temperature", [0.0, 1e-5])
def test_repetition_penalty_lowers_what_has_occurred(temperature: float) -> None:
    options = Options(temperature=temperature, repetition_penalty=2, seed=0)
    assert Chooser(options)(LOGITS, [0]) == 1  # 2.0 / 2 < 1.5
    assert Chooser(options)(LOGITS, [5]) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(bad: float, temperature: float) -> None:
    logits = LOGITS.clone()
    logits[4] = bad
    with pytest.raises(CheckpointError, match=r"1 of 6 logits .* do this instead$"):
        Chooser(Options(temperature=temperature), "do this instead")(logits, [0])
