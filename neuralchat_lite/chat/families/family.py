"""What there is to say about a family: where its calls begin and end, and what is in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Call = tuple[str, str]  # the name of a tool, and its arguments as JSON


@dataclass(frozen=True)
class Family:
    """mark: a text of the chat template, or a token, that only this family has
    region: where calls are, as a field of a response template of transformers
    calls: given what is in a region, the calls; raises ValueError for what is none
    arguments: what the family calls the arguments
    begins, ends: what stands around a call that is forced
    bare: calls have no mark, so that only names of known tools are calls
    """

    mark: str
    region: dict[str, Any]
    calls: Callable[[str], list[Call]]
    begins: str = ""
    ends: str = ""
    arguments: str = "arguments"
    bare: bool = False


def calls_of_json(text: str) -> list[Call]:
    """{"name": ..., "arguments": {...}}, or several in a list or one after the other."""
    decoder = json.JSONDecoder()
    found: list[Call] = []
    text = text.strip()
    while text:
        value, end = decoder.raw_decode(text)
        found += map(call_of, value if isinstance(value, list) else [value])
        text = text[end:].lstrip(" \t\r\n;,")
    if not found:
        raise ValueError("no call")
    return found


def call_of(value: Any) -> Call:
    function = value.get("function", value) if isinstance(value, dict) else None
    if isinstance(function, str):  # {"type": "function", "function": name, "parameters": ...}
        function = {**value, "name": function}
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError("no name")
    given = [function[key] for key in ("arguments", "parameters") if key in function]
    if not given:
        raise ValueError("no arguments")
    return function["name"], arguments_text(given[0])


def arguments_text(value: Any) -> str:
    if isinstance(value, str):
        value = json.loads(value)
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise ValueError("arguments that are no object")
    return json.dumps(value, ensure_ascii=False)
