"""The body of /v1/messages, Anthropic's form of a chat."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from neuralchat_lite.server.errors import bad_request
from neuralchat_lite.server.requests.fields import Body, Fraction, Strict

NO_TOOLS = "send tools to /v1/chat/completions"


class Turn(Strict):
    role: Literal["user", "assistant"]
    content: str | list[dict[str, Any]]


class CountRequest(Body):
    model: str | None = None
    messages: Annotated[list[Turn], Field(min_length=1)]
    system: str | list[dict[str, Any]] | None = None

    unsupported: ClassVar = {
        "tools": (([],), NO_TOOLS),
        "tool_choice": (({"type": "none"},), NO_TOOLS),
        "thinking": (({"type": "disabled"},), "leave it out"),
        "output_config": ((), "leave it out"),
        "container": ((), "leave it out"),
        "context_management": ((), "leave it out"),
        "mcp_servers": (([],), "leave it out"),
        "service_tier": (("auto", "standard_only"), "there is one tier"),
    }

    def prompt(self) -> tuple[list[dict[str, Any]], str]:
        """The messages, and how the answer begins: a last turn of the assistant is gone on with."""
        messages: list[dict[str, Any]] = []
        if self.system:
            messages.append({"role": "system", "content": text_of(self.system, "system")})
        for turn in self.messages:
            messages.append({"role": turn.role, "content": text_of(turn.content, "messages")})
        if messages[-1]["role"] == "assistant" and len(self.messages) > 1:
            return messages[:-1], messages[-1]["content"]
        return messages, ""


class MessagesRequest(CountRequest):
    max_tokens: Annotated[int, Field(gt=0)]
    temperature: Fraction | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = Field(None, description="of no effect")


def text_of(content: str | list[dict[str, Any]], field: str) -> str:
    """The text of blocks. Raises RequestError for those that are none."""
    if isinstance(content, str):
        return content
    texts = []
    for block in content:
        kind, text = block.get("type"), block.get("text")
        if kind != "text" or not isinstance(text, str):
            raise bad_request(
                f"{field} has a block of the type {str(kind)[:50]!r}, and models here read "
                "{'type': 'text', 'text': ...} alone: leave it out",
                field,
            )
        extra = set(block) - {"type", "text", "cache_control", "citations"}
        if extra or block.get("citations"):
            raise bad_request(
                f"{field} has a block with {', '.join(sorted(extra)) or 'citations'}, which are "
                "not supported: leave them out",
                field,
            )
        texts.append(text)
    return "\n".join(texts)
