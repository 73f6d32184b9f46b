"""Tools that a model may call, and whether it must."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from neuralchat_lite.chat.tool_choice import forced_call, free_calls
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.server.errors import bad_request
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


class WithTools(Body):
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    def tools_given(self) -> list[dict[str, Any]] | None:
        """In the form that templates read; None where nothing may be called."""
        if not self.tools:
            if self.tool_choice not in (None, "none", "auto"):
                raise bad_request(
                    "tool_choice asks for a call, and there are no tools: give some", "tools"
                )
            return None
        if self.tool_choice == "none":
            return None
        return [tool.model_dump(exclude_none=True) for tool in self.tools]

    def grammar(self, tokenizer: Any) -> str | None:
        """What holds the answer to what was asked of its calls; None where the model is free.

        Raises RequestError for what the model's form of calls does not allow.
        """
        tools, choice = self.tools_given(), self.tool_choice
        if tools is None:
            return None
        try:
            if isinstance(choice, NamedTool):
                return forced_call(tokenizer, tools, choice.function.name)
            if choice == "required":
                return forced_call(tokenizer, tools, several=self.parallel_tool_calls is True)
            strict = any(tool["function"].get("strict") for tool in tools)
            if strict or self.parallel_tool_calls is False:
                return free_calls(tokenizer, tools, several=self.parallel_tool_calls is not False)
        except ConfigError as error:
            raise bad_request(str(error), "tool_choice") from None
        return None
