"""Running text: each token once, with what a slow reading finds."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.accuracy.divergence import divergence, keep_reference, kl_of
from benchmarks.accuracy.perplexity import (
    Windows,
    first_tokens,
    log_probs,
    negative_log_likelihoods,
)
from neuralchat_lite.checkpoints.random_weights import RandomCheckpoint
from neuralchat_lite.models.build import load_decoder
from neuralchat_lite.models.decoder import Decoder

TINY = {
    "model_type": "mistral",
    "vocab_size": 60,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}


def decoder_of(seed: int) -> Decoder:
    return load_decoder(RandomCheckpoint(TINY, seed), compute_dtype="fp32")


@pytest.fixture(scope="module")
def ids() -> tuple[int, ...]:
    return tuple(torch.randint(0, 60, (50,), generator=torch.Generator().manual_seed(0)).tolist())


@pytest.mark.parametrize(("context", "stride"), [(16, 8), (16, 16), (16, 1), (64, 32), (7, 5)])
def test_every_token_is_scored_once_behind_most_of_a_window(ids, context, stride):
    windows = Windows(((ids, 1), (ids[:20], 5), (ids[:3], 1)), context, stride)
    scored = []
    for fed, count in windows:
        assert len(fed) <= context
        scored.append(tuple(fed[-count:]))
        # Any but the first window of a document leaves what the stride leaves.
        assert len(fed) - count >= min(context - stride, 1)
    flat = [token for part in scored for token in part]
    assert flat == [*ids[1:], *ids[5:20], *ids[1:3]]
    assert windows.tokens == len(flat)


def test_losses_are_those_of_each_token_read_alone(ids):
    decoder = decoder_of(0)
    windows = Windows(((ids, 1), (ids[30:], 4)), context=16, stride=6)
    want = []
    for document, unscored in windows.documents:
        for place in range(unscored, len(document)):
            begin = 0  # of the first window that holds the token
            while begin + 16 <= place:
                begin += 6
            logits = decoder.forward(document[begin:place], decoder.new_cache())
            want.append(-logits.log_softmax(-1)[document[place]].item())
    assert negative_log_likelihoods(decoder, windows) == pytest.approx(want, abs=1e-4)


def test_windows_say_what_they_are(ids):
    one = Windows(((ids, 1),), 16, 8)
    assert one.sha256 == Windows(((ids, 1),), 16, 8).sha256
    others = [Windows(((ids, 2),), 16, 8), Windows(((ids, 1),), 16, 4), Windows(((ids, 1),), 32, 8)]
    assert len({one.sha256, *(other.sha256 for other in others)}) == 4


def test_a_text_is_cut_to_so_many_scored_tokens(ids):
    documents = [(ids[:10], 4), (ids[:3], 5), (ids, 1)]
    assert first_tokens(documents, None) == ((ids[:10], 4), (ids, 1))
    assert first_tokens(documents, 6) == ((ids[:10], 4),)
    assert first_tokens(documents, 8) == ((ids[:10], 4), (ids[:3], 1))


def test_a_model_does_not_diverge_from_itself(ids, tmp_path):
    windows = Windows(((ids, 1),), 16, 8)
    keep_reference(decoder_of(0), windows, tmp_path / "kept.npy")
    found = divergence(decoder_of(0), windows, tmp_path / "kept.npy")
    assert max(map(abs, found.kl)) < 1e-9
    assert found.same_top == [1] * 49


def test_divergence_is_the_sum_that_defines_it(ids, tmp_path):
    windows = Windows(((ids, 1),), 16, 8)
    keep_reference(decoder_of(0), windows, tmp_path / "kept.npy")
    found = divergence(decoder_of(1), windows, tmp_path / "kept.npy")
    rows = [
        (left, right)
        for (lefts, _), (rights, _) in zip(
            log_probs(decoder_of(0), windows), log_probs(decoder_of(1), windows), strict=True
        )
        for left, right in zip(lefts.tolist(), rights.tolist(), strict=True)
    ]
    want = [sum(math.exp(p) * (p - q) for p, q in zip(*row, strict=True)) for row in rows]
    assert found.kl == pytest.approx(want, abs=1e-5)
    assert min(found.kl) > 0
    tops = [int(left.index(max(left)) == right.index(max(right))) for left, right in rows]
    assert found.same_top == tops


def test_divergence_has_a_direction():
    sure, unsure = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert kl_of(sure, unsure).item() == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert kl_of(unsure, sure).item() == pytest.approx(0.5 * math.log(5 / 9) + 0.5 * math.log(5))
