"""A prompt of any form as token ids: a text, messages through a chat template, or ids."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from neuralchat_lite.checkpoints.chat_template import (
    TemplateRefusal,
    render_messages,
    variables_of,
)
from neuralchat_lite.checkpoints.tokenizer import Tokenizer
from neuralchat_lite.errors import ConfigError, ContextError, PromptError
from neuralchat_lite.generation.messages import (
    Message,
    check_for_template,
    check_messages,
    check_text,
    has_parts,
    with_joined_parts,
)
from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.values import shown, suggestion

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
# Variables of a chat template, and options of rendering, that are not the user's.
OURS = {"messages", "add_generation_prompt", "continue_final_message", "chat_template", "tokenizer"}
# Options that need messages -> what to do with another prompt.
OF_MESSAGES = {
    "prefill": "append it to the prompt",
    "chat_template_kwargs": "leave it out, or give [{'role': 'user', 'content': ...}]",
}
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
    text: what an answer that echoes begins with; None for ids, whose text is decoded
    """

    ids: tuple[int, ...]
    stop: tuple[str, ...] = ()
    of_messages: bool = False
    text: str | None = field(default=None, compare=False)


def encode_prompt(
    prompt: PromptInput,
    tokenizer: Tokenizer,
    vocab_size: int,
    context_length: int | None = None,
    options: GenerationOptions | None = None,
) -> Prompt:
    """Turn a prompt of any form into ids.

    prompt: a text (tokenized with the special tokens of the tokenizer, e.g. <s> first);
        messages, a list of {"role": ..., "content": ...}, through the tokenizer's own chat
        template, or neural-chat's (without <s>) when it has none;
        token ids, a list or a tensor [n] or [1, n], or what a tokenizer of transformers returns
    context_length: a text that certainly has more tokens is not tokenized whole
    options: whose prefill and chat_template_kwargs are used; they need messages

    Raises ConfigError when they cannot be used, PromptError when the prompt is empty, has another
    form, has ids outside the vocabulary, or is a text that is certainly too long.
    """
    if isinstance(prompt, Mapping) and "input_ids" in prompt:
        prompt = prompt["input_ids"]
    if isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], Mapping):
        return encode_messages(prompt, tokenizer, context_length, options)
    refuse_options_of_messages(options)
    if isinstance(prompt, str):
        if not prompt:
            raise PromptError("the prompt is an empty string: give at least one character")
        check_text(prompt, "the prompt")
        check_length(prompt, tokenizer, context_length)
        return Prompt(tuple(tokenizer.encode(prompt)), text=prompt)
    return Prompt(check_ids(prompt, vocab_size))


def refuse_options_of_messages(options: GenerationOptions | None) -> None:
    if options is None:
        return
    for name, instead in OF_MESSAGES.items():
        if getattr(options, name):
            raise ConfigError(
                f"{name}={shown(getattr(options, name))} needs a prompt of messages, and this one "
                f"is a text or token ids: {instead}"
            )


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
    if isinstance(prompts[0], str) or (
        isinstance(prompts[0], list | tuple) and prompts[0] and isinstance(prompts[0][0], Mapping)
    ):
        raise PromptError(
            f"got a list with {len(prompts)} prompts where one is asked for: give one, or call "
            "generate or stream of the model, which take a list"
        )


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
            raise ContextError(
                f"the prompt has {len(text)} characters, and the first {start + len(piece)} have "
                f"more tokens than the context of {context_length}: shorten it, or load with a "
                "larger context_length if the model allows it"
            )


def encode_messages(
    messages: Sequence[Any],
    tokenizer: Tokenizer,
    context_length: int | None = None,
    options: GenerationOptions | None = None,
) -> Prompt:
    """Messages through the chat template. Raises as `encode_prompt` does."""
    messages = checked_messages(list(messages), tokenizer)
    options = options or GenerationOptions()
    check_text(options.prefill, "prefill")
    variables = options.chat_template_kwargs or {}
    check_variables(variables, tokenizer)
    ids = tuple(
        encode_turns(
            messages,
            tokenizer,
            context_length,
            asks=True,
            prefill=options.prefill,
            variables=variables,
        )
    )
    stops = NEURAL_CHAT_STOPS if tokenizer.chat_template is None else ()
    return Prompt(ids, stops, of_messages=True, text=options.prefill)


def checked_messages(messages: Sequence[Any], tokenizer: Tokenizer) -> Sequence[Any]:
    """Messages as the chat template takes them. The model's own decides which roles there are and
    who speaks when; neural-chat's knows turns. Raises PromptError."""
    if tokenizer.chat_template is None:
        check_messages(messages)
        return messages
    check_for_template(messages)
    if has_parts(messages) and not reads_parts(tokenizer):
        return with_joined_parts(messages)
    return messages


def reads_parts(tokenizer: Tokenizer) -> bool:
    """Whether the chat template takes contents as lists of parts. Others write the list itself
    into the prompt, or fail."""
    words = "Qx7partQx7"
    said = []
    for content in (words, [{"type": "text", "text": words}]):
        try:
            said.append(render_messages(tokenizer, [{"role": "user", "content": content}]))
        except PromptError:
            return False
    return said[0] == said[1]


def encode_turns(
    messages: Sequence[Any],
    tokenizer: Tokenizer,
    context_length: int | None,
    *,
    asks: bool,
    prefill: str = "",
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """asks: for an answer, so that the ids end where it begins
    prefill: comes after them
    variables: of the chat template
    """
    text = render_turns(messages, tokenizer, asks=asks, variables=variables) + prefill
    check_length(text, tokenizer, context_length)
    return tokenizer.encode(text, add_special_tokens=False)


def render_turns(
    messages: Sequence[Any],
    tokenizer: Tokenizer,
    *,
    asks: bool,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The text of messages in the chat template. See `encode_turns`."""
    if tokenizer.chat_template is None:
        blocks = [NEURAL_CHAT[m["role"]].format(m["content"]) for m in messages]
        text = "".join(blocks) + (NEURAL_CHAT_REPLY if asks else "")
    else:
        try:
            text = render_messages(
                tokenizer, messages, **{**(variables or {}), "add_generation_prompt": asks}
            )
        except TemplateRefusal as error:
            roles = [m["role"] for m in messages]
            remedy = (
                "try without a system message"
                if "system" in roles
                else "let user and assistant speak in turn, or give token ids instead"
            )
            raise PromptError(
                f"the model's chat template refuses these messages ({error.said}): "
                f"the roles were {', '.join(roles)}; {remedy}"
            ) from None  # a cause would say the same again
    return text


def check_variables(given: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Raise ConfigError for those that the chat template does not read, or that are set here."""
    if not given:
        return
    names = ", ".join(given)
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"chat_template_kwargs has {names}, and the model has no chat template: leave it out"
        )
    if ours := sorted(OURS & set(given)):
        raise ConfigError(
            f"chat_template_kwargs has {', '.join(ours)}, which this library sets: leave it out "
            "(`prefill` begins the answer)"
        )
    try:
        read = variables_of(tokenizer, given.get("tools"))
    except TemplateRefusal:  # said when messages are rendered
        return
    known = sorted(set(read) - OURS - set(tokenizer.special_tokens_map))
    for name in given:
        if name not in read:
            raise ConfigError(
                f"chat_template_kwargs has {shown(name)}, which the model's chat template does "
                f"not read{suggestion(name, known)}: it reads {', '.join(known) or 'none'}"
            )
