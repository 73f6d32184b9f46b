"""A prompt of any form as token ids: a text, messages through a chat template, or ids."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from neuralchat_lite.checkpoints.chat_template import TemplateRefusal, render_messages
from neuralchat_lite.checkpoints.tokenizer import Tokenizer
from neuralchat_lite.errors import PromptError
from neuralchat_lite.values import shown

Message = Mapping[str, str]  # {"role": ..., "content": ...}
# A text, messages, token ids, or what a tokenizer of transformers returns.
PromptInput = str | Sequence[Message] | Sequence[int] | Tensor | Mapping[str, Any]

# neural-chat's prompt. Without a system message the block is left out: there is no default one.
NEURAL_CHAT = {
    "system": "### System:\n{}\n",
    "user": "### User:\n{}\n",
    "assistant": "### Assistant:\n{}\n",
}
NEURAL_CHAT_REPLY = "### Assistant:\n"
NEURAL_CHAT_STOPS = ("### User:", "### System:")
ROLES = tuple(NEURAL_CHAT)
# Tokenizing takes some 250 bytes of memory per byte of text. So a long text is counted first, in
# pieces of so many characters. Where a piece is cut a few tokens more are counted than the whole
# has, so as many are left out.
PIECE = 1 << 16
CUT_TOKENS = 64


@dataclass(frozen=True)
class Prompt:
    """Token ids, and where the answer to them ends.

    stop: stop strings of the template
    of_messages: whether the answer is a turn, which ends at any token of `turn_ends`
    """

    ids: tuple[int, ...]
    stop: tuple[str, ...] = ()
    of_messages: bool = False


def encode_prompt(
    prompt: PromptInput,
    tokenizer: Tokenizer,
    vocab_size: int,
    context_length: int | None = None,
) -> Prompt:
    """Turn a prompt of any form into ids.

    prompt: a text (tokenized with the special tokens of the tokenizer, e.g. <s> first);
        messages, a list of {"role": ..., "content": ...}, through the tokenizer's own chat
        template, or neural-chat's (without <s>) when it has none;
        token ids, a list or a tensor [n] or [1, n], or what a tokenizer of transformers returns
    context_length: a text that certainly has more tokens is not tokenized whole
    Raises PromptError when it is empty, has another form, has ids outside the vocabulary, or is a
    text that is certainly too long.
    """
    if isinstance(prompt, str):
        if not prompt:
            raise PromptError("the prompt is an empty string: give at least one character")
        check_text(prompt, "the prompt")
        check_length(prompt, tokenizer, context_length)
        return Prompt(tuple(tokenizer.encode(prompt)))
    if isinstance(prompt, Mapping) and "input_ids" in prompt:
        prompt = prompt["input_ids"]
    if isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], Mapping):
        return encode_messages(prompt, tokenizer, context_length)
    return Prompt(check_ids(prompt, vocab_size))


def check_ids(prompt: Any, vocab_size: int) -> tuple[int, ...]:
    try:
        ids = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    except Exception as error:  # such as a tensor without values, or a sparse one
        raise PromptError(
            f"the token ids cannot be read from a {type(prompt).__name__} ({shown(str(error))}): "
            "give a list of integers"
        ) from None
    refuse_several(ids)
    if isinstance(ids, list | tuple) and len(ids) == 1 and isinstance(ids[0], list | tuple):
        ids = ids[0]  # a batch of one, as transformers' tokenizers return it
    if not isinstance(ids, Sequence) or isinstance(ids, bytes | str):
        raise PromptError(
            f"a prompt is a text, a list of messages, or token ids; got {type(prompt).__name__}"
        )
    if not ids:
        raise PromptError("the prompt is empty: give a text, messages, or at least one token id")
    checked = []
    for value in ids:
        if isinstance(value, list | tuple):
            raise PromptError(f"got {len(ids)} lists of token ids: give one prompt at a time")
        try:
            if isinstance(value, bool):
                raise TypeError
            value = operator.index(value)  # an int, or what numpy has for it
        except TypeError:
            raise PromptError(
                f"token ids must be integers, got {shown(value)}: give the ids of a tokenizer"
            ) from None
        checked.append(value)
        if not 0 <= value < vocab_size:
            raise PromptError(
                f"token id {shown(value)} is outside the vocabulary of {vocab_size}: "
                "use the model's own tokenizer"
            )
    return tuple(checked)


def refuse_several(prompts: Any) -> None:
    """Raise PromptError for a list of texts or of conversations, which is several prompts."""
    if not isinstance(prompts, list | tuple) or not prompts:
        return
    kinds = {
        "text": all(isinstance(each, str) for each in prompts),
        "list of messages": all(
            isinstance(each, list | tuple) and each and isinstance(each[0], Mapping)
            for each in prompts
        ),
    }
    for kind, found in kinds.items():
        if found:
            raise PromptError(
                f"got a list with {len(prompts)} prompts (each a {kind}), and a list is one prompt:"
                " messages ({'role': ..., 'content': ...}) or token ids. For one answer each, call "
                "[model.generate(prompt) for prompt in prompts]; a batch that reads the weights "
                "once is generate of neuralchat_lite.transformers.AutoModelForCausalLM"
            )


def check_text(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{what} is not valid UTF-8 at character {error.start}: decode it from its own "
            "encoding first"
        ) from None


def check_length(text: str, tokenizer: Tokenizer, context_length: int | None) -> None:
    """Raise PromptError for a text that has more tokens than the context, as soon as so many are
    counted. One that may fit passes."""
    if context_length is None or len(text) <= PIECE:
        return
    counted = 0
    for start in range(0, len(text), PIECE):
        piece = text[start : start + PIECE]
        found = len(tokenizer.encode(piece, add_special_tokens=False))
        counted += max(0, found - CUT_TOKENS)
        if counted > context_length:
            raise PromptError(
                f"the prompt has {len(text)} characters, and the first {start + len(piece)} have "
                f"more tokens than the context of {context_length}: shorten it, or load with a "
                "larger context_length if the model allows it"
            )


def encode_messages(
    messages: Sequence[Any], tokenizer: Tokenizer, context_length: int | None = None
) -> Prompt:
    """Messages through the chat template. Raises as `encode_prompt` does."""
    messages = list(messages)
    check_messages(messages)
    ids = tuple(encode_turns(messages, tokenizer, context_length, asks=True))
    stops = NEURAL_CHAT_STOPS if tokenizer.chat_template is None else ()
    return Prompt(ids, stops, of_messages=True)


def encode_turns(
    messages: Sequence[Any], tokenizer: Tokenizer, context_length: int | None, *, asks: bool
) -> list[int]:
    """asks: for an answer, so that the ids end where it begins"""
    if tokenizer.chat_template is None:
        blocks = [NEURAL_CHAT[m["role"]].format(m["content"]) for m in messages]
        text = "".join(blocks) + (NEURAL_CHAT_REPLY if asks else "")
    else:
        try:
            text = render_messages(tokenizer, messages, add_generation_prompt=asks)
        except TemplateRefusal as error:
            roles = [m["role"] for m in messages]
            remedy = (
                "try without a system message" if "system" in roles else "give token ids instead"
            )
            raise PromptError(
                f"the model's chat template refuses these messages ({error.said}): "
                f"the roles were {', '.join(roles)}; {remedy}"
            ) from None  # a cause would say the same again
    check_length(text, tokenizer, context_length)
    return tokenizer.encode(text, add_special_tokens=False)


def check_messages(messages: Sequence[Any]) -> None:
    """One system message at most, first; then user and assistant in turn, user first and last."""
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise PromptError(
                f"message {index} must be {{'role': ..., 'content': ...}}, got {shown(message)}"
            )
        if message["role"] not in ROLES:
            raise PromptError(
                f"message {index} has the role {shown(message['role'])}, "
                f"expected one of {', '.join(ROLES)}"
            )
        if not isinstance(message["content"], str):
            raise PromptError(
                f"message {index} has a content of type {type(message['content']).__name__}, "
                "expected a text"
            )
        check_text(message["content"], f"message {index}")
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    for index, message in enumerate(turns):
        expected = ("user", "assistant")[index % 2]
        if message["role"] != expected:
            raise PromptError(
                f"turn {index} has the role {shown(message['role'])}, expected {expected!r}: after "
                "an optional system message, user and assistant speak in turn"
            )
    if not turns or turns[-1]["role"] != "user":
        raise PromptError(
            "the last message must be the user's, for the model to answer: "
            f"got {shown(messages[-1]['role'])}"
        )
    if not turns[-1]["content"].strip():
        raise PromptError("the user's last message is empty: say something")
