"""Items of /v1/responses: messages, calls of tools, their results and what was thought."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag

from neuralchat_lite.server.errors import bad_request
from neuralchat_lite.server.requests.chat import Function, arguments_of
from neuralchat_lite.server.requests.fields import Strict

PARTS = ("input_text", "output_text", "text")


class Item(Strict):
    """Answers of earlier requests are items too, with an id and a status."""

    id: str | None = None
    status: str | None = None


class Message(Item):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[dict[str, Any]]
    phase: str | None = None

    def add_to(self, messages: list[dict[str, Any]]) -> None:
        role = "system" if self.role == "developer" else self.role
        text = text_of(self.content)
        if role == "assistant":
            turn = turn_of(messages, begins="content")
            turn["content"] = text
        else:
            messages.append({"role": role, "content": text})


class Call(Item):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    caller: None = None
    namespace: None = None

    def add_to(self, messages: list[dict[str, Any]]) -> None:
        function = Function(name=self.name, arguments=self.arguments)
        made = {"name": self.name, "arguments": arguments_of(function, "input")}
        call = {"id": self.call_id, "type": "function", "function": made}
        turn_of(messages).setdefault("tool_calls", []).append(call)


class Result(Item):
    type: Literal["function_call_output"]
    call_id: str
    output: str | list[dict[str, Any]]

    def add_to(self, messages: list[dict[str, Any]]) -> None:
        calls = [call for message in messages for call in message.get("tool_calls", ())]
        names = {call["id"]: call["function"]["name"] for call in calls}
        if self.call_id not in names:
            raise bad_request(
                f"there is a function_call_output for {self.call_id[:100]!r}, and no function_call "
                "before it has this call_id: send the call too",
                "input",
            )
        messages.append(
            {
                "role": "tool",
                "tool_call_id": self.call_id,
                "name": names[self.call_id],
                "content": text_of(self.output),
            }
        )


class Reasoning(Item):
    type: Literal["reasoning"]
    summary: list[dict[str, Any]] | None = None
    content: list[dict[str, Any]] | None = None
    encrypted_content: None = None

    def add_to(self, messages: list[dict[str, Any]]) -> None:
        text = text_of(self.content or self.summary or (), ("reasoning_text", "summary_text"))
        if text:
            turn_of(messages, begins="reasoning_content")["reasoning_content"] = text


def turn_of(messages: list[dict[str, Any]], begins: str | None = None) -> dict[str, Any]:
    """The assistant's turn that an item belongs to: the last one, or a new one.

    begins: a field that a turn has before its calls, so that a second one begins another turn
    """
    last = messages[-1] if messages else {}
    ended = begins is not None and (begins in last or "tool_calls" in last)
    if last.get("role") != "assistant" or ended:
        messages.append({"role": "assistant"})
    return messages[-1]


def text_of(content: str | Sequence[dict[str, Any]], kinds: Sequence[str] = PARTS) -> str:
    """Raises RequestError for parts that are no text."""
    if isinstance(content, str):
        return content
    texts = []
    for part in content:
        kind, text = part.get("type"), part.get("text")
        if kind not in kinds or not isinstance(text, str):
            raise bad_request(
                f"input has a part of the type {str(kind)[:50]!r}, and models here read text "
                f"alone ({', '.join(kinds)}): leave it out",
                "input",
            )
        texts.append(text)
    return "\n".join(texts)


def kind_of(item: Any) -> str:
    """A message may leave its type out."""
    kind = item.get("type", "message") if isinstance(item, dict) else "message"
    return kind if isinstance(kind, str) else "message"


AnyItem = Annotated[
    Annotated[Message, Tag("message")]
    | Annotated[Call, Tag("function_call")]
    | Annotated[Result, Tag("function_call_output")]
    | Annotated[Reasoning, Tag("reasoning")],
    Discriminator(kind_of),
]
