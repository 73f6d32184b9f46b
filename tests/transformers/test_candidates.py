"""Candidates at the edge of the context."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from .conftest import Pair

OPTIONS = {"max_new_tokens": 2000, "eos_token_id": -1}


def shortened(pair: Pair, context: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model with another, shorter context."""
    decoder = copy.copy(pair.ours.decoder)
    decoder.context_length = context
    model = copy.deepcopy(pair.ours)
    monkeypatch.setattr(model, "decoder", decoder)
    return model


@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize("count", [1, 3, 10])
@pytest.mark.filterwarnings("ignore:max_length")
def test_prompt_lookup_ends_at_the_edge_of_the_context_as_without_it(
    nano: Pair, count: int, sample: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shortened(nano, 60, monkeypatch)
    ids = torch.tensor([[5, 9, 30] * 4])
    found = model.generate(ids, prompt_lookup_num_tokens=count, do_sample=sample, **OPTIONS)
    assert found.shape == (1, 60)
    if not sample:
        assert torch.equal(found, model.generate(ids, **OPTIONS))


@pytest.mark.filterwarnings("ignore:max_length")
@pytest.mark.parametrize("own", [30, 41, 59, 60, 90])
def test_assistants_whose_context_is_shorter_or_longer_give_the_same_text(
    nano: Pair, own: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, assistant = (shortened(nano, length, monkeypatch) for length in (60, own))
    ids = torch.tensor([[5, 9, 30] * 4])
    want = model.generate(ids, **OPTIONS)
    assert torch.equal(model.generate(ids, assistant_model=assistant, **OPTIONS), want)
    assert torch.equal(model.generate(ids, assistant_model=nano.theirs, **OPTIONS), want)
