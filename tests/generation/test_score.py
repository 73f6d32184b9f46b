"""Scores of texts, against a softmax over all logits at once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from neuralchat_lite.checkpoints.random_weights import RandomCheckpoint
from neuralchat_lite.errors import CheckpointError, PromptError
from neuralchat_lite.generation import score as module
from neuralchat_lite.generation.score import Score, score
from neuralchat_lite.generation.texts import is_one
from neuralchat_lite.models.build import load_decoder

from ..conftest import TINY


@pytest.fixture(scope="module")
def tiny() -> Any:
    return load_decoder(RandomCheckpoint(TINY, 0), compute_dtype="fp32", context_length=100)


class Words:
    """A tokenizer whose tokens are numbers; 59 is special."""

    all_special_ids = (59,)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [*([59] if add_special_tokens else []), *(ord(letter) % 59 for letter in text)]

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(f"<{token}>" for token in ids)

    def convert_ids_to_tokens(self, token: int) -> str:
        return "start" if token == 59 else str(token)

    def convert_tokens_to_ids(self, token: str) -> int | None:
        return None


def slow(decoder: Any, ids: list[int]) -> list[float]:
    logits = decoder.forward(ids, decoder.new_cache(), all_logits=True).double()
    following = torch.tensor(ids[1:])[:, None]
    found: list[float] = logits[:-1].log_softmax(-1).gather(1, following)[:, 0].tolist()
    return found


TEXTS = [[1, 2, 3], [7], list(range(50)), [5, 4], [9] * 101, list(range(40, 0, -1))]


@pytest.mark.parametrize("rows", [1, 256])
def test_the_likeliest_tokens_are_those_of_the_same_logits(
    tiny: Any, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS", rows)
    tokenizer: Any = Words()
    plain, found = score(tiny, tokenizer, TEXTS), score(tiny, tokenizer, TEXTS, top_logprobs=3)
    for ids, one, other in zip(TEXTS, plain, found, strict=True):
        assert one.top_logprobs == () and one.logprobs == other.logprobs
        assert len(other.top_logprobs) == len(ids) and other.top_logprobs[0] is None
        if len(ids) == 1:
            continue
        logits = tiny.forward(ids[:-1], tiny.new_cache(), all_logits=True)
        for row, top in zip(logits, other.top_logprobs[1:], strict=True):
            assert top is not None
            assert [each.token_id for each in top] == row.topk(3).indices.tolist()
            assert top[0].logprob == pytest.approx(float(row.log_softmax(-1).max()), abs=1e-5)


@pytest.mark.parametrize("rows", [1, 7, 256])
def test_scores_are_those_of_a_softmax_over_all_logits(
    tiny: Any, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS", rows)
    tokenizer: Any = Words()
    found = score(tiny, tokenizer, TEXTS)
    for ids, one in zip(TEXTS, found, strict=True):
        assert one.token_ids == tuple(ids)
        assert one.logprobs[0] is None
        wanted = slow(tiny, ids[:100])
        assert list(one.logprobs[1:100]) == pytest.approx(wanted, abs=1e-5)
        assert len(one.logprobs) == len(ids)
        assert one == score(tiny, tokenizer, [ids])[0], "alone or in company"


def test_a_text_has_the_special_tokens_and_names_for_all(tiny: Any) -> None:
    tokenizer: Any = Words()
    [one] = score(tiny, tokenizer, ["ab"])
    assert (one.token_ids, one.tokens) == ((59, 38, 39), ("start", "<38>", "<39>"))
    assert one == score(tiny, tokenizer, [torch.tensor([59, 38, 39])])[0]


def test_totals_and_perplexities_are_plain_arithmetic() -> None:
    one = Score((1, 2, 3), (None, -1.0, -2.0), ("a", "b", "c"))
    assert (one.total, one.perplexity) == (-3.0, math.exp(1.5))
    single = Score((1,), (None,), ("a",))
    assert (single.total, single.perplexity) == (0.0, None)


@pytest.mark.parametrize(
    ("texts", "rule"),
    [
        ([], "no texts to be scored: give at least one"),
        (["a", ""], "text 1: the prompt is an empty string"),
        ([[1] * 102], "text 0 has 102 tokens, and 101 can be scored in a context of 100: cut it"),
        ([[1], [60]], "text 1: token id 60 is outside the vocabulary of 60"),
        ([[{"role": "user", "content": "a"}]], "text 0 is a list of messages"),
        ([3], "text 0: a prompt is"),
    ],
)
def test_texts_that_cannot_be_scored_are_named(tiny: Any, texts: Any, rule: str) -> None:
    tokenizer: Any = Words()
    with pytest.raises(PromptError, match=rule):
        score(tiny, tokenizer, texts)


def test_logits_that_are_not_finite_are_an_error(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer: Any = Words()
    monkeypatch.setattr(
        type(tiny), "forward_batch", lambda self, batch, *_, **__: [torch.full((2, 60), math.nan)]
    )
    with pytest.raises(CheckpointError, match="120 of 120 logits after 1 tokens are NaN"):
        score(tiny, tokenizer, [[1, 2, 3]])


@pytest.mark.parametrize(
    ("given", "one"),
    [("a", True), ([1, 2], True), (torch.tensor([1]), True), (["a"], False), ([[1]], False)],
)
def test_one_text_is_told_from_a_list(given: Any, one: bool) -> None:
    assert is_one(given) is one
