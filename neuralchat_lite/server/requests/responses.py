"""The body of /v1/responses."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from neuralchat_lite.server.calling import Calling
from neuralchat_lite.server.errors import bad_request
from neuralchat_lite.server.requests.fields import Body, Fraction, Strict
from neuralchat_lite.server.requests.items import AnyItem

STATELESS = "nothing is kept here: send the whole conversation as input"


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
        if self.type != "json_schema" and self.schema_ is not None:
            raise bad_request(
                f"text.format of the type {self.type} has a schema, which would have no effect: "
                "give the type json_schema, or leave the schema out",
                "text.format.schema",
            )
        forms: dict[str, dict[str, Any]] = {
            "text": {},
            "json_object": {"json_object": True},
            "json_schema": {"json_schema": self.schema_},
        }
        return forms[self.type]


class TextOptions(Strict):
    format: Format | None = None


class Tool(Strict):
    type: Literal["function"]
    name: Annotated[str, Field(min_length=1, max_length=200)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def as_function(self) -> dict[str, Any]:
        """In the form that templates read."""
        return {
            "type": "function",
            "function": self.model_dump(exclude_none=True, exclude={"type"}),
        }


class NamedTool(Strict):
    type: Literal["function"]
    name: str


class ResponsesRequest(Body):
    model: str | None = None
    input: str | Annotated[list[AnyItem], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(gt=0)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Fraction | None = None
    text: TextOptions | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
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
        "max_tool_calls": ((), "tools run where the request comes from"),
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

    def calling(self) -> Calling:
        """Raises RequestError where a call is asked for and there are no tools."""
        tools, choice = [tool.as_function() for tool in self.tools or ()], self.tool_choice
        if isinstance(choice, NamedTool):
            return Calling.of(tools, name=choice.name, several=self.parallel_tool_calls)
        return Calling.of(tools, choice, several=self.parallel_tool_calls)

    def messages(self) -> list[dict[str, Any]]:
        first = [] if self.instructions is None else [self.instructions]
        found: list[dict[str, Any]] = [{"role": "system", "content": text} for text in first]
        if isinstance(self.input, str):
            return [*found, {"role": "user", "content": self.input}]
        for item in self.input:
            item.add_to(found)
        for message in found:
            message.setdefault("content", "")
        if found[-1]["role"] == "assistant":
            raise bad_request(
                "the last item of input is the assistant's: add what the user says next, or the "
                "function_call_output of its calls",
                "input",
            )
        return found
