"""Stopping criteria during the prompt."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import transformers as hf

from neuralchat_lite.models.decoder import Decoder

from .conftest import Pair

PROMPT = torch.tensor([[3, 5, 9, 30] * 10])


class Blocks:
    """Blocks of four tokens, and what happens before one of them."""

    def __init__(self) -> None:
        self.fed: list[int] = []
        self.before: dict[int, Any] = {}


@pytest.fixture
def blocks(nano: Pair, monkeypatch: pytest.MonkeyPatch) -> Blocks:
    found, whole = Blocks(), Decoder.run_block

    def run_block(self: Decoder, ids: Any, *rest: Any) -> Any:
        found.fed.append(len(ids))
        found.before.get(len(found.fed), lambda: None)()
        return whole(self, ids, *rest)

    monkeypatch.setattr(Decoder, "run_block", run_block)
    monkeypatch.setattr(nano.ours.decoder, "prefill_block", 4)
    return found


class Flag(hf.StoppingCriteria):
    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((len(input_ids),), self.event.is_set())


class Calls(hf.StoppingCriteria):
    """Ends after some calls."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self.left -= 1
        return torch.full((len(input_ids),), self.left <= 0)


class LastToken(hf.StoppingCriteria):
    """Ends after a token, which is the last of the prompt too."""

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return input_ids[:, -1] == PROMPT[0, -1]


class Likely(hf.StoppingCriteria):
    """Needs scores."""

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((len(input_ids),), bool(scores[0].max() > 1e9))


def test_a_flag_that_another_thread_sets_ends_generate_within_the_prompt(
    nano: Pair, blocks: Blocks
) -> None:
    flag = Flag()
    blocks.before[3] = flag.event.set
    streamer = hf.TextIteratorStreamer(nano.tokenizer, timeout=1, skip_prompt=True)
    found = nano.ours.generate(
        PROMPT, max_new_tokens=9, stopping_criteria=[Likely(), flag], streamer=streamer
    )
    assert torch.equal(found, PROMPT) and blocks.fed == [4, 4, 4]
    assert "".join(streamer) == ""  # it has ended


def test_what_is_asked_for_is_returned_in_its_form(nano: Pair, blocks: Blocks) -> None:
    flag = Flag()
    blocks.before[2] = flag.event.set
    found = nano.ours.generate(
        PROMPT,
        max_new_tokens=9,
        do_sample=True,
        num_return_sequences=2,
        return_dict_in_generate=True,
        stopping_criteria=hf.StoppingCriteriaList([flag]),
    )
    assert torch.equal(found.sequences, PROMPT.repeat(2, 1))


def test_a_flag_set_while_tokens_come_keeps_them(nano: Pair, blocks: Blocks) -> None:
    flag = Flag()
    blocks.before[14] = flag.event.set
    options = {"max_new_tokens": 20, "eos_token_id": -1}
    found = nano.ours.generate(PROMPT, stopping_criteria=[flag], **options)
    assert found.shape[1] == PROMPT.shape[1] + 5
    # Without a cache all is fed again for each token.
    flag, blocks.fed[:] = Flag(), []
    blocks.before = {15: flag.event.set}
    found = nano.ours.generate(PROMPT, stopping_criteria=[flag], use_cache=False, **options)
    assert found.shape[1] == PROMPT.shape[1] + 2


@pytest.mark.parametrize("make", [lambda: Calls(5), LastToken, lambda: Calls(1)])
def test_criteria_of_ids_and_of_calls_end_where_they_do_in_transformers(
    nano: Pair, blocks: Blocks, make: Any
) -> None:
    options = {"max_new_tokens": 12, "eos_token_id": -1}
    ours = nano.ours.generate(PROMPT, stopping_criteria=[make()], **options)
    theirs = nano.theirs.generate(PROMPT, stopping_criteria=[make()], **options)
    assert ours.tolist() == theirs.tolist()
