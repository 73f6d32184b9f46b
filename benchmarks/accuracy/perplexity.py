"""What a model makes of running text: each token predicted once, with most of a window before it.

Windows of `context` tokens start `stride` tokens apart; of each only the tokens that the window
before did not reach are scored, so that every scored token but those of the first window sees at
least `context - stride` tokens. Windows do not cross documents.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neuralchat_lite.engines.engine import Decoder


@dataclass(frozen=True)
class Windows:
    """Documents, and how they are cut: the same for every engine, token by token.

    documents: (ids, how many at its beginning are not scored: the first at least)
    """

    documents: tuple[tuple[tuple[int, ...], int], ...]
    context: int
    stride: int

    def __iter__(self) -> Iterator[tuple[Sequence[int], int]]:
        """(ids of a window, how many of its last ones are scored)"""
        for ids, reached in self.documents:
            assert reached > 0, "nothing predicts the first token"
            for begin in range(0, len(ids), self.stride):
                end = min(begin + self.context, len(ids))
                if end > reached:
                    yield ids[begin:end], end - reached
                    reached = end
                if end == len(ids):
                    break

    @property
    def tokens(self) -> int:
        """How many are scored."""
        return sum(max(0, len(ids) - unscored) for ids, unscored in self.documents)

    @property
    def sha256(self) -> str:
        text = json.dumps([self.documents, self.context, self.stride])
        return hashlib.sha256(text.encode()).hexdigest()


def first_tokens(
    documents: Sequence[tuple[Sequence[int], int]], count: int | None
) -> tuple[tuple[tuple[int, ...], int], ...]:
    """The documents up to `count` scored tokens in all; the last may be cut."""
    kept: list[tuple[tuple[int, ...], int]] = []
    for ids, unscored in documents:
        scored = max(0, len(ids) - unscored)
        if count is not None:
            scored = min(scored, count)
            count -= scored
        if scored:
            kept.append((tuple(ids[: unscored + scored]), unscored))
    return tuple(kept)


def logits_of(decoder: Decoder, ids: Sequence[int], cache: Any) -> Tensor:
    """[len(ids), vocab] fp32 logits of every id fed: at once where the decoder offers it, else
    token by token."""
    if "all_logits" in inspect.signature(decoder.forward).parameters:
        whole: Any = decoder
        logits: Tensor = whole.forward(ids, cache, all_logits=True)
        return logits
    return torch.stack([decoder.forward([token], cache) for token in ids])


def log_probs(decoder: Decoder, windows: Windows) -> Iterator[tuple[Tensor, Tensor]]:
    """For each window ([scored, vocab] fp32 log-probabilities, [scored] ids that came)."""
    for ids, scored in windows:
        logits = logits_of(decoder, ids, decoder.new_cache(len(ids)))
        yield logits[-scored - 1 : -1].log_softmax(-1), torch.tensor(ids[-scored:])


def negative_log_likelihoods(decoder: Decoder, windows: Windows) -> list[float]:
    """Of every scored token, in nats. The perplexity is e to the power of their mean."""
    values: list[Any] = []
    for rows, wanted in log_probs(decoder, windows):
        values += (-rows.gather(1, wanted[:, None])[:, 0]).tolist()
    return values
