"""Blocks of a turn in Anthropic's form."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError

from neuralchat_lite.server.errors import bad_request, of_validation
from neuralchat_lite.server.requests.fields import Strict


class BlockForm(Strict):
    cache_control: dict[str, Any] | None = Field(None, description="of no effect")


class Text(BlockForm):
    type: Literal["text"]
    text: str
    citations: None = None


class Thinking(BlockForm):
    """What the model has thought. Nothing is signed here."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class Use(BlockForm):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: None = None
    toolset_name: None = None

    def as_call(self) -> dict[str, Any]:
        """In the form that templates read."""
        function = {"name": self.name, "arguments": self.input}
        return {"id": self.id, "type": "function", "function": function}


class Result(BlockForm):
    """What a tool has said."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[dict[str, Any]] = ""
    is_error: bool | None = None

    def as_message(self, names: dict[str, str]) -> dict[str, Any]:
        """names: of the calls before, by their ids. Templates know no errors, so one is said."""
        if self.tool_use_id not in names:
            raise bad_request(
                f"there is a tool_result for {self.tool_use_id[:100]!r}, and no tool_use before "
                "it has this id: send the assistant's turn too",
                "messages",
            )
        text = text_of(self.content, "messages")
        return {
            "role": "tool",
            "tool_call_id": self.tool_use_id,
            "name": names[self.tool_use_id],
            "content": f"Error: {text}" if self.is_error else text,
        }


# role -> the blocks that its turns may have
BLOCKS: dict[str, dict[str, type[BlockForm]]] = {
    "user": {"text": Text, "tool_result": Result},
    "assistant": {"text": Text, "thinking": Thinking, "tool_use": Use},
}


def blocks_of(content: str | list[dict[str, Any]], role: str, field: str = "messages") -> list[Any]:
    """Raises RequestError for a block that cannot be read."""
    if isinstance(content, str):
        return [Text(type="text", text=content, cache_control=None)]
    return [block_of(block, BLOCKS[role], field) for block in content]


def block_of(block: dict[str, Any], forms: dict[str, type[BlockForm]], field: str) -> BlockForm:
    kind = block.get("type")
    if not isinstance(kind, str) or kind not in forms:
        raise bad_request(
            f"{field} has a block of the type {str(kind)[:50]!r}, and models here read "
            f"{', '.join(forms)} alone there: leave it out",
            field,
        )
    try:
        return forms[kind].model_validate(block)
    except ValidationError as error:
        said = of_validation(error.errors())
        raise bad_request(
            f"{field} has a block of the type {kind}: {said.message}", field
        ) from None


def text_of(content: str | list[dict[str, Any]], field: str) -> str:
    """The text of blocks that are text alone. Raises RequestError for others."""
    if isinstance(content, str):
        return content
    forms: dict[str, type[BlockForm]] = {"text": Text}
    blocks: list[Any] = [block_of(block, forms, field) for block in content]
    return "\n".join(block.text for block in blocks)
