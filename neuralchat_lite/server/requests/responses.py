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


class Format(Strict):
    """Of the answer's text. `strict` has no effect: every schema is kept to."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None
    description: str | None = None

    def form(self) -> dict[str, Any]:
        """The option of `GenerationOptions` that gives the answer its form. Raises RequestError."""
        if self.type == "json_schema" and self.schema_ is None:
            raise bad_request(
                "text.format of the type json_schema needs a schema: give one", "text.format.schema"
            )
        forms: dict[str, dict[str, Any]] = {
            "text": {},
            "json_object": {"json_object": True},
            "json_schema": {"json_schema": self.schema_},
        }
        return forms[self.type]


class TextOptions(Strict):
    format: Format | None = None


class ResponsesRequest(Body):
    model: str | None = None
    input: str | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(gt=0)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Fraction | None = None
    text: TextOptions | None = None
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
        "tools": (([],), "send tools to /v1/chat/completions"),
        "tool_choice": (("none", "auto"), "send tools to /v1/chat/completions"),
        "parallel_tool_calls": ((True, False), "send tools to /v1/chat/completions"),
        "max_tool_calls": ((), "send tools to /v1/chat/completions"),
        "reasoning": (({},), "leave it out"),
        "include": (([],), "leave it out"),
        "truncation": (("disabled",), "shorten the input"),
        "service_tier": (("auto", "default"), "there is one tier"),
        "top_logprobs": ((0,), "use /v1/chat/completions"),
        "stream_options": (({},), "leave it out"),
        "prompt": ((), "send the text itself as input"),
    }

    def form(self) -> dict[str, Any]:
        return {} if self.text is None or self.text.format is None else self.text.format.form()

    def messages(self) -> list[dict[str, Any]]:
        first = [] if self.instructions is None else [self.instructions]
        found = [{"role": "system", "content": text} for text in first]
        if isinstance(self.input, str):
            return [*found, {"role": "user", "content": self.input}]
        return [*found, *(item.as_message() for item in self.input)]
