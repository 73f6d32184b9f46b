"""Where an answer to messages ends: the tokens that any file of the model names as the end.

config.json, generation_config.json, the tokenizer and the chat template often name different ones.
A model that was trained to close its turn with one of them goes on to invent the user's next words
where another is waited for. So all of them end an answer.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from neuralchat_lite.checkpoints.chat_template import render_messages
from neuralchat_lite.checkpoints.tokenizer import Tokenizer
from neuralchat_lite.errors import PromptError
from neuralchat_lite.families.architecture import Architecture

# Two turns whose words no template has: what comes between them closes the answer.
ANSWER, NEXT = "Qx7answerQx7", "Qx7nextQx7"
TURNS = (
    {"role": "user", "content": "Qx7firstQx7"},
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": NEXT},
)
# tokenizer -> (its template, the id that closes a turn there)
closing: WeakKeyDictionary[Any, tuple[Any, int | None]] = WeakKeyDictionary()


def turn_ends(tokenizer: Tokenizer, architecture: Architecture) -> dict[int, list[str]]:
    """Token id -> which files say that it ends an answer to messages."""
    found: dict[int, list[str]] = {}
    for source, ids in architecture.stated_eos.items():
        for index in ids:
            found.setdefault(index, []).append(source)
    named = {
        "the tokenizer's eos_token": tokenizer.eos_token_id,
        "the chat template": closing_id(tokenizer),
    }
    for source, own in named.items():
        if own is not None:
            found.setdefault(own, []).append(source)
    return found


def closing_id(tokenizer: Tokenizer) -> int | None:
    """The token that the chat template writes after an answer; None where it writes a text."""
    template = tokenizer.chat_template
    if template is None:
        return None
    known = closing.get(tokenizer)
    if known is None or known[0] != template:
        known = closing[tokenizer] = (template, find_closing_id(tokenizer))
    return known[1]


def find_closing_id(tokenizer: Tokenizer) -> int | None:
    try:
        text = render_messages(tokenizer, TURNS)
    except PromptError:  # said when messages come
        return None
    between = text.partition(ANSWER)[2].partition(NEXT)[0].lstrip()
    matching = [
        (len(token), index)
        for token, index in tokenizer.get_added_vocab().items()
        if token.strip() and between.startswith(token) and is_mark(token, index, tokenizer)
    ]
    return max(matching)[1] if matching else None


def is_mark(token: str, index: int, tokenizer: Tokenizer) -> bool:
    """Whether a token is no part of ordinary text: tokenizers may add words and spaces too."""
    return index in tokenizer.all_special_ids or token[0] + token[-1] in ("<>", "[]")
