"""Tokens that are drawn, against their probabilities in plain arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import TopPLogitsWarper

from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.generation.sampling import Chooser, TopP

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


def scores_of(seed: int) -> torch.Tensor:
    """Of many shapes: flat and peaked, with equal ones, and with some that cannot come."""
    made = torch.Generator().manual_seed(seed)
    size = [1, 2, 50, 700, 9_000][seed % 5]
    scores = torch.randn((1, size), generator=made) * [0.0, 0.3, 2.0, 8.0][seed // 5 % 4]
    if seed // 20 % 2:
        scores = (scores * 4).round() / 4
    if seed // 40 % 2 and size > 2:
        scores[0, torch.randint(0, size, (size // 2,), generator=made)] = -math.inf
    return scores


@pytest.mark.parametrize("top_p", [1e-6, 0.05, 0.5, 0.9, 0.95, 0.999, 1 - 1e-7])
def test_top_p_keeps_the_tokens_that_transformers_keeps(top_p: float) -> None:
    fast, slow = TopP(top_p), TopPLogitsWarper(top_p)
    for seed in range(80):
        scores = scores_of(seed)
        before = scores.clone()
        assert torch.equal(fast(None, scores), slow(None, scores)), seed  # type: ignore[arg-type]
        assert torch.equal(scores, before), "what was given is as it was"


def test_top_p_at_the_very_boundary_rounds_as_transformers_does() -> None:
    scores = torch.randn((1, 300), generator=torch.Generator().manual_seed(1)) * 2
    sums = scores.sort().values.softmax(-1).cumsum(-1)[0]
    for at in sums.tolist()[:-1]:
        for top_p in (1 - at, math.nextafter(1 - at, 2), math.nextafter(1 - at, 0)):
            if 0 < top_p < 1:
                wanted = TopPLogitsWarper(top_p)(None, scores)  # type: ignore[arg-type]
                assert torch.equal(TopP(top_p)(None, scores), wanted)


def test_only_equal_logits_at_the_boundary_are_sorted_with_their_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    top_p = TopP(0.5)
    called: list[Any] = []
    monkeypatch.setattr(top_p, "slow", lambda ids, scores: called.append(None) or scores)
    top_p(None, torch.tensor([[3.0, 1.0, 1.0, 1.0, 0.0]]))
    assert not called
    top_p(None, torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0]]))
    assert called
