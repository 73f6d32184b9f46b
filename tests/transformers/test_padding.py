"""Attention masks and positions: padding is never computed, and never continued."""

from __future__ import annotations

import pytest
import torch

from .conftest import PROMPTS, Pair


def test_positions_that_count_tokens_make_padding_between_them_invisible(nano: Pair) -> None:
    ids = nano.batch(PROMPTS[2]).input_ids
    mask = torch.ones_like(ids)
    mask[0, 4] = 0
    positions = mask.cumsum(1) - 1
    options = {"attention_mask": mask, "position_ids": positions}
    ours, theirs = nano.ours(ids, **options).logits, nano.theirs(ids, **options).logits
    torch.testing.assert_close(ours[0, -1], theirs[0, -1], rtol=0, atol=5e-3)


def test_generating_behind_padding_is_refused(nano: Pair) -> None:
    nano.tokenizer.padding_side = "right"
    batch = nano.batch(*PROMPTS[:2])
    nano.tokenizer.padding_side = "left"
    with pytest.raises(ValueError, match="pad on the left, with tokenizer"):
        nano.ours.generate(**batch, max_new_tokens=2)


def test_a_window_that_slides_over_padding_gives_the_ids_of_transformers(nano: Pair) -> None:
    window = nano.ours.decoder.architecture.windows[0]
    prompts = (" and ".join(PROMPTS * 6), PROMPTS[0], " or ".join(PROMPTS * 3))
    batch = nano.batch(*prompts)
    assert batch.input_ids.shape[1] > window > int(batch.attention_mask[1].sum())
    ours, theirs = nano.ids(batch, max_new_tokens=30, eos_token_id=-1)
    assert ours == theirs


def test_positions_that_count_padding_between_two_tokens_are_refused(nano: Pair) -> None:
    ids, mask = torch.tensor([[5, 9, 30, 7]]), torch.tensor([[1, 0, 1, 1]])
    with pytest.raises(ValueError, match=r"expected \[0, 1, 2\].*cumsum\(1\) - 1"):
        nano.ours(ids, attention_mask=mask, position_ids=torch.tensor([[0, 1, 2, 3]]))
    # Padding before the first token may be counted: it changes no distance.
    mask = torch.tensor([[0, 1, 1, 1]])
    counted = nano.ours(ids, attention_mask=mask, position_ids=torch.tensor([[0, 1, 2, 3]])).logits
    assert torch.equal(counted, nano.ours(ids, attention_mask=mask).logits)
