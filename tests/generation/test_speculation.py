"""Drafts that stand leave the answer as it would be without them."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import pytest
import torch

from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.generation.sampling import Chooser
from neuralchat_lite.generation.speculation import LONGEST, SHORTEST, NgramDrafts, accept_drafts

Options = GenerationOptions
VOCABULARY = 5


def slow_draft(ids: list[int], count: int) -> list[int]:
    """The oracle: look for the longest last run from the end, and copy what came after it."""
    for length in range(LONGEST, SHORTEST - 1, -1):
        run = ids[-length:]
        for end in range(len(ids) - 1, length - 1, -1):
            if len(run) == length and ids[end - length : end] == run:
                text = list(ids)
                for place in range(end, end + count):
                    text.append(text[place])
                return text[len(ids) :]
    return []


@pytest.mark.parametrize("vocabulary", [2, 4, 30])
def test_drafts_are_what_came_after_the_longest_run_when_it_was_last_there(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    ids = torch.randint(vocabulary, (200,), generator=generator).tolist()
    drafts = NgramDrafts(ids[:50])
    for end in range(50, 200):
        assert drafts.draft(6) == slow_draft(ids[:end], 6)
        drafts.extend([ids[end]])


def test_a_text_that_repeats_is_drafted_beyond_its_end() -> None:
    assert NgramDrafts([1, 2, 3, 1, 2]).draft(7) == [3, 1, 2, 3, 1, 2, 3]
    assert NgramDrafts([7, 7, 7]).draft(3) == [7, 7, 7]
    assert NgramDrafts([1, 2, 3]).draft(3) == NgramDrafts().draft(3) == []


def test_large_ids_are_told_apart() -> None:
    largest = 2**31 - 1
    assert NgramDrafts([largest, 0, 5, 0, largest]).draft(1) == []
    assert NgramDrafts([largest, 0, 5, largest, 0]).draft(1) == [5]


def test_the_cost_of_a_token_does_not_grow_with_the_text() -> None:
    """Of a text that repeats, where a search would compare most."""

    def seconds(count: int) -> float:
        drafts = NgramDrafts([1, 2] * count)
        best = math.inf
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(200):
                drafts.extend([1, 2])
                drafts.draft(8)
            best = min(best, time.perf_counter() - start)
        return best

    assert seconds(100_000) < 20 * seconds(1_000)  # 100 where each token looks through the text


class Model:
    """Logits that depend on the last two tokens."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(VOCABULARY, VOCABULARY, VOCABULARY, generator=generator) * 1.5

    def rows(self, ids: list[int], drafted: list[int]) -> torch.Tensor:
        whole = [*ids, *drafted]
        ends = range(len(ids), len(whole) + 1)
        return torch.stack([self.table[whole[end - 2], whole[end - 1]] for end in ends])


def without(model: Model, options: Options, ids: list[int], count: int) -> list[int]:
    choose = Chooser(options)
    for _ in range(count):
        ids = [*ids, choose(model.rows(ids, [])[0], ids)]
    return ids


KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalised": {"repetition_penalty": 1.3, "frequency_penalty": 0.2},
    "seeded": {"temperature": 1.0, "seed": 3},
    "narrowed": {"temperature": 0.8, "top_k": 3, "presence_penalty": 0.5, "seed": 4},
}


@pytest.mark.parametrize("kind", KINDS)
def test_with_drafts_that_are_found_each_token_is_the_same(kind: str) -> None:
    model, options = Model(0), Options(**KINDS[kind])
    ids = [0, 1]
    choose, drafts = Chooser(options), NgramDrafts(ids)
    accepted = 0
    while len(ids) < 300:
        drafted = drafts.draft(4)
        found = accept_drafts(model.rows(ids, drafted), drafted, choose, ids)
        accepted += len(found) - 1
        ids += found
        drafts.extend(found)
    assert ids[:300] == without(model, options, [0, 1], 298)
    assert accepted > 20


def chi_square(counts: dict[Any, int], wanted: dict[Any, float]) -> tuple[float, int]:
    """(the statistic, its degrees of freedom); outcomes that are rare are one together"""
    total = sum(counts.values())
    assert set(counts) <= {outcome for outcome, share in wanted.items() if share > 0}
    cells = [(counts.get(each, 0), share * total) for each, share in wanted.items()]
    often = [cell for cell in cells if cell[1] >= 5]
    rare = [cell for cell in cells if cell[1] < 5]
    often.append((sum(n for n, _ in rare), sum(share for _, share in rare)))
    often = [cell for cell in often if cell[1] > 0]
    return sum((n - share) ** 2 / share for n, share in often), len(often) - 1


def plain_shares(model: Model, options: Options, count: int) -> dict[tuple[int, ...], float]:
    """The probability of each continuation of `count` tokens, multiplied out."""
    choose, shares = Chooser(options), {}
    for tokens in itertools.product(range(VOCABULARY), repeat=count):
        ids, share = [0, 1], 1.0
        for token in tokens:
            share *= float(choose.probabilities(model.rows(ids, [])[0], ids)[token])
            ids.append(token)
        shares[tokens] = share
    return shares


@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"top_k": 3}, {"frequency_penalty": 0.7, "top_p": 0.9}], ids=str
)
def test_tokens_have_the_probabilities_that_they_have_without_drafts(
    options: dict[str, Any], drawn: bool
) -> None:
    model, other = Model(1), Model(2)
    settings = Options(temperature=0.9, seed=11, **options)
    choose, guess = Chooser(settings), Chooser(Options(temperature=1.3, seed=12))
    counts: dict[tuple[int, ...], int] = {}
    accepted = 0
    for _ in range(4000):
        ids = [0, 1]
        while len(ids) < 5:
            drafted: list[int] = []
            rows = []
            for _ in range(2):
                before = [*ids, *drafted]
                row = guess.probabilities(other.rows(before, [])[0], before)
                drafted.append(guess.draw(row) if drawn else int(row.argmax()))
                rows.append(row)
            q = torch.stack(rows) if drawn else None
            found = accept_drafts(model.rows(ids, drafted), drafted, choose, ids, q)
            accepted += len(found) - 1
            ids += found
        outcome = tuple(ids[2:5])
        counts[outcome] = counts.get(outcome, 0) + 1
    statistic, freedom = chi_square(counts, plain_shares(model, settings, 3))
    # Five standard deviations; a draw of p in place of the rest gives a hundred.
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)
    assert accepted > 500


def test_a_draft_of_the_models_own_probabilities_always_stands() -> None:
    model = Model(3)
    choose = Chooser(Options(temperature=1.0, seed=5))
    for token in range(VOCABULARY):
        rows = model.rows([0, 1], [token])
        q = rows[:1].softmax(-1)
        assert len(accept_drafts(rows, [token], choose, [0, 1], q)) == 2


@pytest.mark.parametrize("drawn", [True, False])
def test_logits_that_are_not_finite_are_an_error(drawn: bool) -> None:
    choose = Chooser(Options(temperature=1.0, seed=5))
    rows = torch.zeros(2, VOCABULARY)
    rows[0, 0] = math.nan
    q = torch.full((1, VOCABULARY), 0.2) if drawn else None
    with pytest.raises(CheckpointError, match="1 of 5 logits after 2 tokens are NaN"):
        accept_drafts(rows, [1], choose, [0, 1], q)
