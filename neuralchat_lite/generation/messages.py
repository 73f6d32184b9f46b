"""What messages may be: the form of each, and the order in which they speak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from neuralchat_lite.errors import PromptError
from neuralchat_lite.values import shown

Message = Mapping[str, Any]  # {"role": ..., "content": ...}
ROLES = ("system", "user", "assistant")


def check_text(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{what} is not valid UTF-8 at character {error.start}: decode it from its own "
            "encoding first"
        ) from None


def check_messages(messages: Sequence[Any]) -> None:
    """One system message at most, first; then user and assistant in turn, user first and last.

    This is the rule without a chat template of the model's own. Raises PromptError.
    """
    for index, message in enumerate(messages):
        check_fields(message, index)
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
    check_something_said(turns[-1])


def check_fields(message: Any, index: int) -> None:
    if not isinstance(message, Mapping) or "role" not in message or not content_given(message):
        raise PromptError(
            f"message {index} must be {{'role': ..., 'content': ...}}, got {shown(message)}"
        )


def content_given(message: Mapping[str, Any]) -> bool:
    """An assistant that calls tools may have no content."""
    return "content" in message or bool(message.get("tool_calls"))


def check_something_said(last: Mapping[str, Any]) -> None:
    content = last.get("content")
    if last["role"] == "user" and isinstance(content, str) and not content.strip():
        raise PromptError("the user's last message is empty: say something")


def check_for_template(messages: Sequence[Any]) -> None:
    """The form of messages whose roles and order the model's chat template judges.

    Contents are texts or lists of parts, {"type": "text", "text": ...}. Raises PromptError.
    """
    for index, message in enumerate(messages):
        check_fields(message, index)
        if not isinstance(message["role"], str):
            raise PromptError(
                f"message {index} has the role {shown(message['role'])}, expected a text such as "
                "'user'"
            )
        check_text(message["role"], f"the role of message {index}")
        content = message.get("content")
        if isinstance(content, list | tuple) and content:
            for part in content:
                check_part(part, index)
        elif isinstance(content, str):
            check_text(content, f"message {index}")
        elif content is not None or not message.get("tool_calls"):
            raise PromptError(
                f"message {index} has a content of type {type(content).__name__}, expected a text "
                "or a list of {'type': 'text', 'text': ...}"
            )
    if messages[-1]["role"] == "assistant":
        raise PromptError(
            "the last message is the assistant's, and the model is asked for an answer: leave it "
            "out, or give its text as `prefill` to have it continued"
        )
    check_something_said(messages[-1])


def check_part(part: Any, index: int) -> None:
    """Raise PromptError for a part of a content that is no text, such as an image."""
    if not isinstance(part, Mapping) or not isinstance(part.get("type", "text"), str):
        raise PromptError(
            f"message {index} has a part {shown(part)}, expected {{'type': 'text', 'text': ...}}"
        )
    kind = part.get("type", "text")
    if kind != "text":
        raise PromptError(
            f"message {index} has a part of the type {shown(kind)}, and models here read text "
            "alone: leave it out"
        )
    if not isinstance(part.get("text"), str):
        raise PromptError(
            f"message {index} has a part without a text, {shown(part)}: give its 'text'"
        )
    check_text(part["text"], f"a part of message {index}")


def has_parts(messages: Sequence[Mapping[str, Any]]) -> bool:
    return any(isinstance(message.get("content"), list | tuple) for message in messages)


def with_joined_parts(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Contents as texts: parts are joined with newlines, as vLLM and llama.cpp do."""
    return [
        {**message, "content": "\n".join(part["text"] for part in message["content"])}
        if isinstance(message.get("content"), list | tuple)
        else message
        for message in messages
    ]
