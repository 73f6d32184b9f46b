"""Texts that are only read: one or a list of them, given as text or as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from neuralchat_lite.checkpoints.tokenizer import Tokenizer
from neuralchat_lite.engines.engine import Decoder
from neuralchat_lite.errors import ContextError, PromptError
from neuralchat_lite.generation.prompt import encode_prompt


def encode_texts(
    texts: Sequence[Any], decoder: Decoder, tokenizer: Tokenizer, most: int, done: str
) -> list[Sequence[int]]:
    """The token ids of each, with the special tokens of the tokenizer where it is text.

    most: tokens of each; done: what is done with them, such as "scored"

    Raises PromptError for no texts, and for one that is empty, has another form or is too long.
    """
    if not len(texts):
        raise PromptError(f"there are no texts to be {done}: give at least one")
    return [encode(text, index, decoder, tokenizer, most, done) for index, text in enumerate(texts)]


def encode(
    text: Any, index: int, decoder: Decoder, tokenizer: Tokenizer, most: int, done: str
) -> Sequence[int]:
    if isinstance(text, Sequence) and text and isinstance(text[0], Mapping):
        raise PromptError(
            f"text {index} is a list of messages, expected a text or token ids: give the ids of "
            "the tokenizer's apply_chat_template"
        )
    size, limit = decoder.architecture.vocab_size, decoder.context_length
    try:
        ids = encode_prompt(text, tokenizer, size, limit).ids
    except PromptError as error:
        raise type(error)(f"text {index}: {error}") from None
    if len(ids) > most:
        raise ContextError(
            f"text {index} has {len(ids)} tokens, and {most} can be {done} in a "
            f"context of {limit}: cut it, or load with a larger context_length "
            f"(this model allows {decoder.architecture.max_positions})"
        )
    return ids


def is_one(texts: Any) -> bool:
    """Whether what was given is one text or one list of ids, and no list of several."""
    if isinstance(texts, str | Mapping) or getattr(texts, "ndim", None) == 1:
        return True
    return isinstance(texts, list | tuple) and bool(texts) and isinstance(texts[0], int)
