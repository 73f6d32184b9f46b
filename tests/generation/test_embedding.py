"""Vectors of texts, against the hidden states of transformers on the same weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.checkpoints.random_weights import RandomCheckpoint
from neuralchat_lite.engines.engine import can_embed
from neuralchat_lite.engines.reference import open_reference
from neuralchat_lite.errors import CheckpointError, ConfigError, PromptError
from neuralchat_lite.generation import embedding as module
from neuralchat_lite.generation.embedding import POOLINGS, embed
from neuralchat_lite.kernels.reference import ReferenceKernels
from neuralchat_lite.models.build import load_decoder

from ..conftest import TINY
from ..engines.conftest import request_for

TEXTS = [[1, 2, 3], [7], list(range(50)), [5, 4], [9] * 100, list(range(40, 0, -1))]
NO_WORDS: Any = None  # ids need no tokenizer


@pytest.fixture(scope="module")
def tiny() -> Any:
    return load_decoder(RandomCheckpoint(TINY, 0), compute_dtype="fp32", context_length=100)


def theirs(folder: Path, ids: list[int]) -> Tensor:
    """[tokens, hidden] after the last norm."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        states: Tensor = model.model(torch.tensor([ids])).last_hidden_state[0]
    return states


@pytest.mark.parametrize("texts", [TEXTS, [[5]]])
def test_states_pooled_are_those_of_transformers(
    texts: list[list[int]], write_checkpoint: Any
) -> None:
    folder = write_checkpoint(dtype=torch.float32)
    decoder = load_decoder(open_checkpoint(folder), compute_dtype="fp32", context_length=100)
    request = request_for(folder, dtype="fp32", context_length=100)
    states = [theirs(folder, ids) for ids in texts]
    mean = torch.stack([each.mean(0) for each in states])
    last = torch.stack([each[-1] for each in states])
    for engine in (decoder, open_reference(request).decoder):
        for pooling, wanted in (("mean", mean), ("last", last)):
            got = embed(engine, NO_WORDS, texts, pooling, normalize=False)
            assert got.dtype == torch.float32
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
            unit = embed(engine, NO_WORDS, texts, pooling)
            torch.testing.assert_close(unit, functional.normalize(wanted), rtol=0, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 7, 256])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_a_text_has_the_same_bits_alone_and_in_company(
    pooling: str, rows: int, compute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = load_decoder(RandomCheckpoint(TINY, 0), compute_dtype=compute, context_length=100)
    alone = torch.cat([embed(decoder, NO_WORDS, [ids], pooling) for ids in TEXTS])
    monkeypatch.setattr(module, "ROWS", rows)
    assert torch.equal(embed(decoder, NO_WORDS, TEXTS, pooling), alone)


def test_native_and_reference_kernels_give_the_same_states(tiny: Any) -> None:
    slow = load_decoder(
        RandomCheckpoint(TINY, 0),
        compute_dtype="fp32",
        context_length=100,
        kernels=ReferenceKernels(),
    )
    wanted = embed(slow, NO_WORDS, TEXTS, normalize=False)
    got = embed(tiny, NO_WORDS, TEXTS, normalize=False)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_logits_after_hidden_states_are_those_after_logits(tiny: Any) -> None:
    """Both feed a cache alike."""
    caches = [tiny.new_cache(), tiny.new_cache()]
    tiny.hidden_states([[1, 2, 3]], caches[:1])
    tiny.forward([1, 2, 3], caches[1])
    assert torch.equal(*(tiny.forward([4], cache) for cache in caches))


def test_no_cache_outlives_its_text(tiny: Any) -> None:
    before = tiny.pool.nbytes
    embed(tiny, NO_WORDS, TEXTS)
    assert tiny.pool.nbytes == before


@pytest.mark.parametrize(
    ("texts", "rule"),
    [
        ([], "no texts to be embedded: give at least one"),
        ([[1] * 101], "text 0 has 101 tokens, and 100 can be embedded in a context of 100: cut it"),
        ([[1], [60]], "text 1: token id 60 is outside the vocabulary of 60"),
        ([[{"role": "user", "content": "a"}]], "text 0 is a list of messages"),
    ],
)
def test_texts_that_cannot_be_embedded_are_named(tiny: Any, texts: Any, rule: str) -> None:
    with pytest.raises(PromptError, match=rule):
        embed(tiny, NO_WORDS, texts)


@pytest.mark.parametrize("pooling", ["max", None, ["mean"]])
def test_another_pooling_is_refused(tiny: Any, pooling: Any) -> None:
    with pytest.raises(ConfigError, match="pooling must be 'mean' or 'last', got"):
        embed(tiny, NO_WORDS, [[1]], pooling)


def test_states_that_are_not_finite_are_an_error(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        type(tiny), "hidden_states", lambda self, batch, *_: [torch.full((3, 64), math.nan)]
    )
    with pytest.raises(CheckpointError, match="hidden states of text 0 are NaN or infinite"):
        embed(tiny, NO_WORDS, [[1, 2, 3]])


def test_decoders_without_hidden_states_are_known(tiny: Any) -> None:
    assert can_embed(tiny)
    assert not can_embed(object())  # type: ignore[arg-type]
