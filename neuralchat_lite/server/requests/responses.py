"""The body of /v1/responses."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from neuralchat_lite.server.errors import bad_request
from neuralchat_lite.server.requests.fields import Body, Fraction, Strict

PARTS = ("input_text", "output_text", "text")
STATELESS = "nothing is kept here: send the whole conversation as input"


class Item(Strict):
    """A message. Answers of earlier requests are items too, with an id and a status."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[dict[str, Any]]
    id: str | None = None
    status: str | None = None
    phase: str | None = None

    def as_message(self) -> dict[str, Any]:
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return {"role": role, "content": self.content}
        texts = []
        for part in self.content:
            kind, text = part.get("type"), part.get("text")
            if kind not in PARTS or not isinstance(text, str):
                raise bad_request(
                    f"input has a part of the type {str(kind)[:50]!r}, and models here read text "
                    f"alone ({', '.join(PARTS)}): leave it out",
                    "input",
                )
            texts.append(text)
        return {"role": role, "content": "\n".join(texts)}


class ResponsesRequest(Body):
    model: str | None = None
    input: str | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(gt=0)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Fraction | None = None
    stream: bool | None = None
    metadata: dict[str, str] | None = Field(None, description="is given back")
    user: str | None = Field(None, description="of no effect")
    safety_identifier: str | None = Field(None, description="of no effect")
    prompt_cache_key: str | None = Field(None, description="of no effect")

    unsupported: ClassVar = {
        "previous_response_id": ((), STATELESS),
        "conversation": ((), STATELESS),
        "store": ((False,), STATELESS),
        "background": ((False,), "wait for the answer"),
        "text": (({"format": {"type": "text"}}, {}), "structured output is not there yet"),
        "tools": (([],), "tools are not there yet"),
        "tool_choice": (("none", "auto"), "tools are not there yet"),
        "parallel_tool_calls": ((True, False), "tools are not there yet"),
        "max_tool_calls": ((), "tools are not there yet"),
        "reasoning": (({},), "leave it out"),
        "include": (([],), "leave it out"),
        "truncation": (("disabled",), "shorten the input"),
        "service_tier": (("auto", "default"), "there is one tier"),
        "top_logprobs": ((0,), "use /v1/chat/completions"),
        "stream_options": (({},), "leave it out"),
        "prompt": ((), "send the text itself as input"),
    }

    def messages(self) -> list[dict[str, Any]]:
        first = [] if self.instructions is None else [self.instructions]
        found = [{"role": "system", "content": text} for text in first]
        if isinstance(self.input, str):
            return [*found, {"role": "user", "content": self.input}]
        return [*found, *(item.as_message() for item in self.input)]
