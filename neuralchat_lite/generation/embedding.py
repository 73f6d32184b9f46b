"""What a model makes of texts, as vectors: hidden states after the last norm, pooled.

Texts go through the layers together, as in `score`. The states of a text are pooled when all are
there, so that a text has the same bits alone and in company.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from neuralchat_lite.checkpoints.tokenizer import Tokenizer
from neuralchat_lite.engines.engine import WHEN_NOT_FINITE, Decoder, can_embed
from neuralchat_lite.errors import CheckpointError, ConfigError
from neuralchat_lite.generation.texts import encode_texts
from neuralchat_lite.models.decoder import blocks
from neuralchat_lite.values import shown

Pooling = Literal["mean", "last"]
# [tokens, hidden] -> [hidden]. The sum of many tokens is rounded once.
POOLINGS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda states: states.double().mean(0).float(),
    "last": lambda states: states[-1],
}
ROWS = 256  # tokens that go through the layers together


def embed(
    decoder: Decoder,
    tokenizer: Tokenizer,
    texts: Sequence[Any],
    pooling: Any = "mean",
    normalize: bool = True,
) -> Tensor:
    """[len(texts), hidden] fp32: a vector for each text, in order.

    texts: texts (tokenized with the special tokens of the tokenizer) or token ids
    pooling: "mean" of all tokens, or the "last" one, which has seen all others
    normalize: to the Euclidean length 1, so that a dot product of two is their cosine

    Raises PromptError for no texts, and for one that is empty, has another form or is longer than
    the context; ConfigError for another pooling; CheckpointError for states that are not finite.
    """
    assert can_embed(decoder)
    pool = POOLINGS.get(pooling) if isinstance(pooling, str) else None
    if pool is None:
        raise ConfigError(
            f"pooling must be {' or '.join(map(repr, POOLINGS))}, got {shown(pooling)}: give one "
            "of them"
        )
    ids = encode_texts(texts, decoder, tokenizer, decoder.context_length, "embedded")
    vectors = torch.empty((len(ids), decoder.architecture.hidden_size))
    remedy = getattr(decoder, "when_not_finite", WHEN_NOT_FINITE)
    caches: dict[int, Any] = {}
    states: dict[int, list[Tensor]] = {}
    for block in blocks([len(each) for each in ids], ROWS):
        for text, _, _ in block:
            if text not in caches:
                caches[text], states[text] = decoder.new_cache(len(ids[text])), []
        found = decoder.hidden_states(
            [ids[text][first:last] for text, first, last in block],
            [caches[text] for text, _, _ in block],
        )
        for (text, _, last), rows in zip(block, found, strict=True):
            states[text].append(rows)
            if last == len(ids[text]):
                vectors[text] = pool(torch.cat(states.pop(text)))
                del caches[text]  # its memory is free for the next ones
                check_finite(vectors[text], text, remedy)
    return functional.normalize(vectors) if normalize else vectors


def check_finite(vector: Tensor, text: int, remedy: str) -> None:
    if not vector.isfinite().all():
        raise CheckpointError(
            f"the hidden states of text {text} are NaN or infinite, expected finite numbers: "
            f"{remedy}"
        )
