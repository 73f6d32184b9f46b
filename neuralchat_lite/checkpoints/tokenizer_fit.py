"""Whether a tokenizer belongs to an embedding: every token that a text may have needs a row."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from neuralchat_lite.checkpoints.tokenizer import Tokenizer
from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.families.architecture import Architecture

log = logging.getLogger(__name__)


def check_tokenizer_fits(
    architecture: Architecture, tokenizer: Tokenizer, folder: Path, base: Path | None = None
) -> None:
    """Raise CheckpointError when the embedding lacks rows for tokens that every conversation or
    text needs; warn of other added tokens without a row, such as a padding token.

    folder: of the tokenizer
    base: the checkpoint whose embedding it is, when the tokenizer is an adapter's
    """
    rows = architecture.vocab_size
    beyond = {token: index for token, index in tokenizer.get_vocab().items() if index >= rows}
    if not beyond:
        return
    remedy = "give the tokenizer files of this model, or weights whose embedding was resized for it"
    if base is not None:
        remedy = (
            "give a base whose embedding was resized for the adapter, or remove the adapter's "
            "tokenizer files to keep the base's"
        )
    what = f"the tokenizer in {folder} has {rows + len(beyond)} tokens"
    whose = "the base's embedding" if base is not None else "the model's embedding"
    first = min(beyond, key=lambda token: beyond[token])
    example = f"{first!r} is {beyond[first]}"
    learned = not beyond.keys() <= tokenizer.get_added_vocab().keys()
    if base is not None or learned or is_written(beyond, tokenizer):
        raise CheckpointError(f"{what}, but {whose} has only {rows} rows ({example}): {remedy}")
    log.warning(
        "%s, but %s has only %d rows (%s): a prompt with such a token will be refused",
        what,
        whose,
        rows,
        example,
    )


def is_written(tokens: Mapping[str, int], tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer itself or the chat template writes one of the tokens."""
    template = str(tokenizer.chat_template or "")
    named = {
        token: name for name, token in tokenizer.special_tokens_map.items() if name in template
    }
    around = {*tokenizer.encode("a")}
    return any(
        index in around or token in template or token in named for token, index in tokens.items()
    )
