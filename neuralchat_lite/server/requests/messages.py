"""The body of /v1/messages, Anthropic's form of a chat."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from neuralchat_lite.server.calling import Calling
from neuralchat_lite.server.errors import bad_request
from neuralchat_lite.server.requests.blocks import Result, Text, Thinking, Use, blocks_of, text_of
from neuralchat_lite.server.requests.fields import Body, Fraction, Strict


class Turn(Strict):
    role: Literal["user", "assistant"]
    content: str | list[dict[str, Any]]


class Tool(Strict):
    """One that runs where the request comes from."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: dict[str, Any] | None = Field(None, description="of no effect")

    def as_function(self) -> dict[str, Any]:
        """In the form that templates read."""
        function: dict[str, Any] = {"name": self.name, "parameters": self.input_schema}
        if self.description is not None:
            function["description"] = self.description
        if self.strict is not None:
            function["strict"] = self.strict
        return {"type": "function", "function": function}


class Choice(Strict):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


CHOICES = {"auto": "auto", "any": "required", "none": "none", "tool": None}


class CountRequest(Body):
    model: str | None = None
    messages: Annotated[list[Turn], Field(min_length=1)]
    system: str | list[dict[str, Any]] | None = None
    tools: list[Tool] | None = None
    tool_choice: Choice | None = None

    unsupported: ClassVar = {
        "thinking": (({"type": "disabled"},), "leave it out"),
        "output_config": ((), "leave it out"),
        "container": ((), "leave it out"),
        "context_management": ((), "leave it out"),
        "mcp_servers": (([],), "leave it out"),
        "service_tier": (("auto", "standard_only"), "there is one tier"),
    }

    def calling(self) -> Calling:
        """Raises RequestError where a call is asked for and there are no tools."""
        choice = self.tool_choice or Choice(type="auto")
        if (choice.type == "tool") is (choice.name is None):
            raise bad_request(
                "tool_choice has a name with the type 'tool', and only there: "
                + ("give one" if choice.name is None else "leave it out"),
                "tool_choice.name",
            )
        alone = choice.disable_parallel_tool_use
        return Calling.of(
            [tool.as_function() for tool in self.tools or ()],
            CHOICES[choice.type],
            choice.name,
            several=None if alone is None else not alone,
        )

    def prompt(self) -> tuple[list[dict[str, Any]], str]:
        """The messages, and how the answer begins: a last turn of the assistant is gone on with."""
        messages: list[dict[str, Any]] = []
        if self.system:
            messages.append({"role": "system", "content": text_of(self.system, "system")})
        names: dict[str, str] = {}
        for turn in self.messages:
            said = blocks_of(turn.content, turn.role)
            if turn.role == "user":
                messages += of_user(said, names)
            else:
                messages.append(of_assistant(said, names))
        last = messages[-1]
        if last["role"] == "assistant" and len(self.messages) > 1:
            if set(last) != {"role", "content"}:
                raise bad_request(
                    "the last message is the assistant's and has more than text: give the results "
                    "of its tools, or leave it out",
                    "messages",
                )
            return messages[:-1], last["content"]
        return messages, ""


def of_user(said: list[Any], names: dict[str, str]) -> list[dict[str, Any]]:
    """Messages of the roles tool and user, in the order of the blocks. Texts beside each other are
    one."""
    found: list[dict[str, Any]] = []
    for block in said:
        if isinstance(block, Result):
            found.append(block.as_message(names))
        elif found and found[-1]["role"] == "user":
            found[-1]["content"] += f"\n{block.text}"
        else:
            found.append({"role": "user", "content": block.text})
    return found or [{"role": "user", "content": ""}]


def of_assistant(said: list[Any], names: dict[str, str]) -> dict[str, Any]:
    """names: of the calls, which are added, by their ids"""
    texts = [block.text for block in said if isinstance(block, Text)]
    thoughts = [block.thinking for block in said if isinstance(block, Thinking)]
    calls = [block for block in said if isinstance(block, Use)]
    names |= {call.id: call.name for call in calls}
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = [call.as_call() for call in calls]
    return message


class MessagesRequest(CountRequest):
    max_tokens: Annotated[int, Field(gt=0)]
    temperature: Fraction | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = Field(None, description="of no effect")
