"""The key/value cache of a batch: it goes on, goes back, and is refused where it does not fit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from neuralchat_lite.errors import PromptError
from neuralchat_lite.transformers.cache import NativeCache

from .conftest import PROMPTS, Pair


def test_a_cache_goes_on_where_it_was(nano: Pair) -> None:
    batch = nano.batch(*PROMPTS[:3])
    ids, mask = batch.input_ids, batch.attention_mask
    whole = nano.ours(ids, attention_mask=mask).logits
    cut = ids.shape[1] - 3
    first = nano.ours(ids[:, :cut], attention_mask=mask[:, :cut], use_cache=True)
    cache = first.cache if "cache" in first else first.past_key_values
    twin = copy.deepcopy(cache)
    for kept in (cache, twin):  # what one was fed is not in the other
        second = nano.ours(ids[:, cut:], attention_mask=mask, past_key_values=kept)
        torch.testing.assert_close(second.logits, whole[:, cut:], rtol=0, atol=1e-4)
    cache.crop(-3)
    assert cache.get_seq_length() == cut
    again = nano.ours(ids[:, cut:], attention_mask=mask, past_key_values=cache)
    torch.testing.assert_close(again.logits, second.logits)


def test_a_conversation_continues_in_its_cache(nano: Pair) -> None:
    cache = NativeCache(nano.ours.decoder)
    first = nano.batch(PROMPTS[0])
    said = nano.ours.generate(**first, past_key_values=cache, max_new_tokens=5, eos_token_id=-1)
    assert cache.get_seq_length() == said.shape[1] - 1
    longer = torch.cat((said, first.input_ids[:, 1:]), dim=1)
    found = nano.ours.generate(longer, past_key_values=cache, max_new_tokens=5, eos_token_id=-1)
    anew = nano.ours.generate(longer, max_new_tokens=5, eos_token_id=-1)
    assert found.tolist() == anew.tolist()


def test_a_call_that_fails_leaves_the_cache_as_it_was(nano: Pair) -> None:
    ids = nano.batch(PROMPTS[0]).input_ids
    cache = NativeCache(nano.ours.decoder)
    nano.ours(ids, past_key_values=cache)
    before, length = cache.real.clone(), cache.rows[0].length
    with pytest.raises(PromptError, match="outside the vocabulary"):
        nano.ours(torch.tensor([[10**6]]), past_key_values=cache)
    assert torch.equal(cache.real, before) and cache.rows[0].length == length
    nano.ours(ids, past_key_values=cache)
    assert cache.get_seq_length() == 2 * ids.shape[1]


def test_a_cache_is_refused_by_another_model_and_for_another_mask(nano: Pair) -> None:
    batch = nano.batch(*PROMPTS[:2])
    cache = NativeCache(nano.ours.decoder)
    nano.ours(**batch, past_key_values=cache)
    step = torch.tensor([[3], [3]])
    ones = torch.ones((2, batch.input_ids.shape[1] + 1))
    with pytest.raises(ValueError, match="differs from that of an earlier call"):
        nano.ours(step, attention_mask=ones, past_key_values=cache)
    with pytest.raises(ValueError, match="batch of 2, and the call has 1 rows"):
        nano.ours(step[:1], past_key_values=cache)
    with pytest.raises(NotImplementedError, match="native decoder"):
        nano.theirs(batch.input_ids, use_cache=True, past_key_values=NativeCache(nano.ours.decoder))


@pytest.mark.parametrize("step", [1, 3])
def test_an_interrupted_call_is_taken_back_or_the_cache_is_used_no_more(
    nano: Pair, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    decoder = nano.ours.decoder
    text = torch.randint(5, 600, (1, 900), generator=torch.Generator().manual_seed(0))
    cache = NativeCache(decoder)
    nano.ours(text[:, :300], past_key_values=cache, logits_to_keep=1)
    run, calls = decoder.run_block, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        found = run(*arguments) if len(calls) < step or step == 3 else None
        if len(calls) == step:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(decoder, "run_block", interrupted)
    with pytest.raises(KeyboardInterrupt):
        nano.ours(text[:, 300:], past_key_values=cache, logits_to_keep=1)
    monkeypatch.undo()
    assert cache.get_seq_length() == 300
    if step == 1:  # nothing was fed yet
        again = nano.ours(text[:, 300:], past_key_values=cache, logits_to_keep=1).logits
        anew = nano.ours(text, logits_to_keep=1).logits
        torch.testing.assert_close(again, anew, rtol=0, atol=1e-3)
    else:  # the window of 256 has moved past what would be needed
        with pytest.raises(ValueError, match="start with a new one"):
            nano.ours(text[:, 300:], past_key_values=cache)


@pytest.mark.parametrize("prompt", [4, 6])
def test_a_prompt_that_the_cache_holds_already_names_the_remedy(nano: Pair, prompt: int) -> None:
    ids = torch.tensor([[5, 9, 1, 7, 30, 31]])
    cache = nano.ours(ids).past_key_values
    with pytest.raises(ValueError, match=r"holds 6 columns, and the prompt has .*cache\.crop"):
        nano.ours.generate(ids[:, :prompt], past_key_values=cache, max_new_tokens=2)
    cache.crop(prompt - 1)
    found = nano.ours.generate(ids[:, :prompt], past_key_values=cache, max_new_tokens=2)
    assert torch.equal(found, nano.ours.generate(ids[:, :prompt], max_new_tokens=2))


def test_positions_that_the_cache_holds_already_name_the_cache(nano: Pair) -> None:
    cache = nano.ours(torch.tensor([[5, 9, 1, 7]])).past_key_values
    with pytest.raises(ValueError, match="cache holds 4 columns, and the new ids come after them"):
        nano.ours(
            torch.tensor([[1, 7]]), past_key_values=cache, position_ids=torch.tensor([[2, 3]])
        )
