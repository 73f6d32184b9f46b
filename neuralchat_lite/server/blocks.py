"""An answer as blocks in their order, for the forms that number them: text, reasoning, calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from neuralchat_lite.chat.answers import Delta, ToolCall

Kind = Literal["text", "reasoning", "call"]


@dataclass
class Block:
    """text: of a call its arguments, a JSON object"""

    kind: Kind
    text: str = ""
    call: ToolCall | None = None


@dataclass(frozen=True)
class Part:
    """What is new of a block. opened: it is its first part"""

    index: int
    block: Block
    text: str
    opened: bool


def take(blocks: list[Block], delta: Delta) -> Part:
    """Add what is new. A call comes whole, and is a block of its own."""
    if delta.call is not None:
        blocks.append(Block("call", delta.call.arguments, delta.call))
        return Part(len(blocks) - 1, blocks[-1], delta.call.arguments, opened=True)
    kind: Kind = "text" if delta.reasoning is None else "reasoning"
    text = (delta.content if delta.reasoning is None else delta.reasoning) or ""
    opened = not blocks or blocks[-1].kind != kind
    if opened:
        blocks.append(Block(kind))
    blocks[-1].text += text
    return Part(len(blocks) - 1, blocks[-1], text, opened)
