"""Tools that a model may call, and whether it must."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from neuralchat_lite.server.calling import Calling
from neuralchat_lite.server.requests.fields import Body, Strict


class ToolFunction(Strict):
    name: Annotated[str, Field(min_length=1, max_length=200)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: ToolFunction


class NamedFunction(Strict):
    name: str


class NamedTool(Strict):
    type: Literal["function"] = "function"
    function: NamedFunction


def tools_of(tools: Sequence[Tool] | None) -> list[dict[str, Any]]:
    """In the form that templates read."""
    return [tool.model_dump(exclude_none=True) for tool in tools or ()]


class WithTools(Body):
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    def calling(self) -> Calling:
        """Raises RequestError where a call is asked for and there are no tools."""
        tools, choice = tools_of(self.tools), self.tool_choice
        if isinstance(choice, NamedTool):
            return Calling.of(tools, name=choice.function.name, several=self.parallel_tool_calls)
        return Calling.of(tools, choice, several=self.parallel_tool_calls)
