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
