"""How likely a model finds texts: the log-probability of each token after those before it.

Texts go through the layers together, a block of rows at a time. So the logits of a block are all
that is held of them: 150 MB for a vocabulary of 150,000.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from neuralchat_lite.checkpoints.tokenizer import Tokenizer
from neuralchat_lite.engines.engine import WHEN_NOT_FINITE, Decoder
from neuralchat_lite.generation.logprobs import TopLogprob, likeliest, logprobs_of
from neuralchat_lite.generation.sampling import check_finite
from neuralchat_lite.generation.text import Detokenizer
from neuralchat_lite.generation.texts import encode_texts
from neuralchat_lite.models.decoder import blocks

ROWS = 256  # tokens whose logits are there at once


@dataclass(frozen=True)
class Score:
    """How likely the model finds a text.

    token_ids: with the special tokens of the tokenizer, such as <s> first
    logprobs: natural log-probability of each token after those before it; None for the first,
        which comes after nothing
    tokens: the text of each token, or its name if it is special
    top_logprobs: the likeliest tokens at each place, the likeliest first; None for the first, and
        empty unless asked for
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    tokens: tuple[str, ...]
    top_logprobs: tuple[tuple[TopLogprob, ...] | None, ...] = ()

    @property
    def total(self) -> float:
        """The sum of all log-probabilities; 0 for a single token."""
        return math.fsum(value for value in self.logprobs if value is not None)

    @property
    def perplexity(self) -> float | None:
        """exp(-mean log-probability); None for a single token."""
        count = len(self.logprobs) - 1
        return math.exp(-self.total / count) if count else None


def score(
    decoder: Decoder, tokenizer: Tokenizer, texts: Sequence[Any], top_logprobs: int = 0
) -> list[Score]:
    """The score of each text, in order. Batches do not change it: a text has the same score alone.

    texts: texts (tokenized with the special tokens of the tokenizer) or token ids
    top_logprobs: how many of the likeliest tokens at each place are wanted too

    Raises PromptError for no texts, and for one that is empty, has another form or is longer than
    the context; CheckpointError for logits that are not finite.
    """
    # The last token needs no place.
    most = decoder.context_length + 1
    ids = encode_texts(texts, decoder, tokenizer, most, "scored")
    name = Detokenizer(tokenizer).name
    found: list[list[float]] = [[] for _ in ids]
    tops: list[list[tuple[TopLogprob, ...]]] = [[] for _ in ids]
    remedy = getattr(decoder, "when_not_finite", WHEN_NOT_FINITE)
    caches: dict[int, Any] = {}
    # The last token of a text is predicted, and never fed.
    for block in blocks([len(each) - 1 for each in ids], ROWS):
        for text, _, _ in block:
            if text not in caches:
                caches[text] = decoder.new_cache(len(ids[text]))
        logits = decoder.forward_batch(
            [ids[text][first:last] for text, first, last in block],
            [caches[text] for text, _, _ in block],
            keep=None,
        )
        for (text, first, last), rows in zip(block, logits, strict=True):
            check_finite(rows, first + 1, remedy)
            found[text] += logprobs_of(rows, ids[text][first + 1 : last + 1])
            if top_logprobs:
                tops[text] += [likeliest(row, top_logprobs, name) for row in rows]
            if last == len(ids[text]) - 1:
                del caches[text]  # its memory is free for the next ones
    return [
        Score(
            tuple(each),
            (None, *logprobs),
            tuple(map(name, each)),
            (None, *top) if top_logprobs else (),
        )
        for each, logprobs, top in zip(ids, found, tops, strict=True)
    ]
