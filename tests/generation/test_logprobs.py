"""Log-probabilities against those of torch in fp64."""

from __future__ import annotations

import pytest
import torch

from neuralchat_lite.generation.logprobs import likeliest, logprob

LOGITS = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 20


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_a_logprob_is_that_of_a_softmax_in_double_precision(shift: float) -> None:
    logits = LOGITS + shift
    wanted = logits.double().log_softmax(-1)
    for token in (0, 17, int(logits.argmax()), int(logits.argmin())):
        assert logprob(logits, token) == pytest.approx(float(wanted[token]), abs=1e-5)


@pytest.mark.parametrize("count", [0, 1, 7, 5000, 9000])
def test_the_likeliest_come_first(count: int) -> None:
    found = likeliest(LOGITS, count, lambda token: f"<{token}>")
    wanted = LOGITS.double().log_softmax(-1).topk(min(count, len(LOGITS)))
    assert [each.token_id for each in found] == wanted.indices.tolist()
    assert [each.token for each in found] == [f"<{token}>" for token in wanted.indices.tolist()]
    assert [each.logprob for each in found] == pytest.approx(wanted.values.tolist(), abs=1e-5)


def test_of_equal_ones_the_lower_ids_are_taken() -> None:
    found = likeliest(torch.zeros(100), 3, str)
    assert [each.token_id for each in found] == [0, 1, 2]
