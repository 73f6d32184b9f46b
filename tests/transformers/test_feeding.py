"""The rows of a batch: each is computed as if alone, and equal ones once."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import PROMPTS, Pair


def test_a_row_of_a_batch_is_computed_as_if_by_itself(nano: Pair) -> None:
    together = nano.ours.generate(**nano.batch(*PROMPTS), max_new_tokens=12, eos_token_id=-1)
    for row, prompt in enumerate(PROMPTS):
        alone = nano.ours.generate(**nano.batch(prompt), max_new_tokens=12, eos_token_id=-1)
        assert together[row, -12:].tolist() == alone[0, -12:].tolist()


def test_beams_that_begin_alike_are_fed_once(nano: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    fed = []
    forward = nano.ours.decoder.forward_batch

    def counting(batch: Any, caches: Any, **options: Any) -> Any:
        fed.append(sum(map(len, batch)))
        return forward(batch, caches, **options)

    monkeypatch.setattr(nano.ours.decoder, "forward_batch", counting)
    batch = nano.batch(PROMPTS[0])
    nano.ours.generate(**batch, num_beams=4, max_new_tokens=3, eos_token_id=-1)
    assert fed == [batch.input_ids.shape[1], 4, 4]
