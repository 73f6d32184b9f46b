"""Several answers to one prompt."""

from __future__ import annotations

import pytest

from neuralchat_lite.generation.forks import options_of_answers
from neuralchat_lite.generation.options import GenerationOptions


@pytest.mark.parametrize("seed", [7, 2**64 - 2])
def test_answer_i_has_seed_plus_i(seed: int) -> None:
    asked = GenerationOptions(temperature=2.0, n=4, seed=seed, max_new_tokens=9)
    found = options_of_answers(asked)
    assert [one.seed for one in found] == [(seed + i) % 2**64 for i in range(4)]
    assert {(one.n, one.temperature, one.max_new_tokens) for one in found} == {(1, 2.0, 9)}


def test_without_a_seed_each_draws_its_own() -> None:
    asked = GenerationOptions(temperature=2.0, n=3)
    assert [one.seed for one in options_of_answers(asked)] == [None] * 3
    assert options_of_answers(GenerationOptions()) == [GenerationOptions()]
