"""Items of an answer in the form of /v1/responses, and the events in which each comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from neuralchat_lite.server.blocks import Block


def text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def reasoning_part(text: str) -> dict[str, Any]:
    return {"type": "reasoning_text", "text": text}


def message(block: Block) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": [text_part(block.text)]}


def reasoning(block: Block) -> dict[str, Any]:
    return {"type": "reasoning", "summary": [], "content": [reasoning_part(block.text)]}


def call(block: Block) -> dict[str, Any]:
    assert block.call is not None
    return {
        "type": "function_call",
        "call_id": block.call.id,
        "name": block.call.name,
        "arguments": block.text,
    }


@dataclass(frozen=True)
class Kind:
    """prefix: of the ids
    make: the item without its id and status
    event: what events of its text are called
    whole: what the last of these calls the whole text
    hollow: what the item has before its first text
    part: the item's content, given its text; None where the text is the item's own
    more: fields of the text's events
    """

    prefix: str
    make: Callable[[Block], dict[str, Any]]
    event: str
    whole: str
    hollow: dict[str, Any]
    part: Callable[[str], dict[str, Any]] | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def empty(self, item: dict[str, Any]) -> dict[str, Any]:
        return {**item, **self.hollow}


ITEMS = {
    "text": Kind(
        "msg",
        message,
        "output_text",
        "text",
        {"content": []},
        text_part,
        {"content_index": 0, "logprobs": []},
    ),
    "reasoning": Kind(
        "rs",
        reasoning,
        "reasoning_text",
        "text",
        {"content": []},
        reasoning_part,
        {"content_index": 0},
    ),
    "call": Kind("fc", call, "function_call_arguments", "arguments", {"arguments": ""}),
}


def item_of(block: Block, answer: str, index: int, status: str) -> dict[str, Any]:
    """answer: its id, of which the item's is made"""
    kind = ITEMS[block.kind]
    name = f"{kind.prefix}_{answer.removeprefix('resp_')}{index:02}"
    return {"id": name, "status": status, **kind.make(block)}
