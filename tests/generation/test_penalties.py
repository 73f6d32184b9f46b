"""What is added to logits, against the formulas in plain arithmetic."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, NoBadWordsLogitsProcessor

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.generation.penalties import Answer
from neuralchat_lite.generation.sampling import Chooser

Options = GenerationOptions
LOGITS = torch.tensor([2.0, 1.5, 0.5, 0.0, -1.0, -3.0])


def scores(ids: list[int], answer: Answer | None = None, **options: Any) -> list[float]:
    before = LOGITS.clone()
    chooser = Chooser(Options(**options), answer=answer or Answer())
    found: list[float] = chooser.penalized(LOGITS, ids)[0].tolist()
    assert torch.equal(before, LOGITS), "logits belong to the decoder"
    return found


@pytest.mark.parametrize(("presence", "frequency"), [(0.5, 0), (0, 0.25), (2, -2), (-0.5, 1.5)])
def test_presence_and_frequency_penalties_are_openais_formula_over_the_answer(
    presence: float, frequency: float
) -> None:
    prompt, answer = [5, 5, 0], [0, 1, 0, 4, 0]
    counts = Counter(answer)
    wanted = [
        logit - counts[token] * frequency - (counts[token] > 0) * presence
        for token, logit in enumerate(LOGITS.tolist())
    ]
    options = {"presence_penalty": presence, "frequency_penalty": frequency}
    assert scores([*prompt, *answer], Answer(len(prompt)), **options) == pytest.approx(wanted)


def test_a_bias_is_added_to_the_logit_of_its_token() -> None:
    wanted = LOGITS.clone()
    wanted[3] += 100
    wanted[0] -= 2.5
    assert scores([1], logit_bias={"3": 100, 0: -2.5}) == wanted.tolist()
    assert Chooser(Options(logit_bias={3: 100}))(LOGITS, [1]) == 3


def test_no_end_is_chosen_before_the_answer_is_long_enough() -> None:
    options = Options(min_new_tokens=2)
    choose = Chooser(options, answer=Answer(begins=1, ends=(0, 1)))
    assert [choose(LOGITS, [5] * count) for count in (1, 2, 3)] == [2, 2, 0]
    assert not choose.penalties_at([5] * 3), "the way of nothing asked is taken again"


def test_the_users_own_are_called_last_before_the_temperature_and_in_their_order() -> None:
    called: list[tuple[str, list[int], list[float]]] = []

    def first(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        called.append(("first", ids[0].tolist(), scores[0].tolist()))
        scores[0, 1] = 50.0  # in place, as many do
        return scores

    class Second(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            called.append(("second", ids[0].tolist(), scores[0].tolist()))
            return scores * 2

    found = scores(
        [4, 4], logits_processors=[first, Second()], logit_bias={0: 1}, temperature=0.5, seed=0
    )
    biased = [3.0, *LOGITS.tolist()[1:]]
    pushed = [3.0, 50.0, *LOGITS.tolist()[2:]]
    assert called == [("first", [4, 4], biased), ("second", [4, 4], pushed)]
    assert found == [2 * value for value in pushed]


def test_a_processor_of_transformers_bans_words() -> None:
    banned = NoBadWordsLogitsProcessor([[0], [5, 1]], eos_token_id=3)
    choose = Chooser(Options(logits_processors=[banned]))
    assert [choose(LOGITS, [4]), choose(LOGITS, [5])] == [1, 2]


def nothing(ids: Any, scores: Any) -> Any:
    return None


@pytest.mark.parametrize(
    ("processor", "rule"),
    [
        (nothing, r"'nothing' must return a tensor of shape \(1, 6\), got NoneType: correct it"),
        (lambda ids, scores: scores[0], r"shape \(1, 6\), got \(6,\)"),
        (lambda ids, scores: scores / 0, "got 0 finite ones of 6"),
        (lambda ids, scores: scores * torch.nan, "must return numbers"),
        (lambda ids, scores: scores - torch.inf, "but not for all tokens"),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_result_that_is_no_scores_names_the_processor(
    processor: Any, rule: str, temperature: float
) -> None:
    choose = Chooser(Options(logits_processors=[processor], temperature=temperature))
    with pytest.raises(ConfigError, match=rule):
        choose(LOGITS, [0])
