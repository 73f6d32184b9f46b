"""An answer, taken apart as it comes: content, reasoning, calls of tools.

transformers' response parser finds the regions. A call is given out when it is whole, so that one
that turns out to be broken can become content and no text is lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from neuralchat_lite.chat.families import family_of, template_text
from neuralchat_lite.chat.families.family import Call, Family, call_of
from neuralchat_lite.errors import ConfigError

THINK = "<think>"
REASONING = {"open": THINK, "close_pattern": r"\s*</think>\s*", "content": "text"}
NAMES_OF_REASONING = ("reasoning_content", "reasoning", "thinking")
# Within a string of JSON what could begin a mark is spelled so that it is none.
ESCAPES = {"<": "\\u003c", "[": "\\u005b"}
RUNS = re.compile(r"[^<\[{]+|.", re.DOTALL)


@dataclass(frozen=True)
class ToolCall:
    """index: of the call in the answer; arguments: a JSON object as a text"""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Delta:
    """What is new: one of the three."""

    content: str | None = None
    reasoning: str | None = None
    call: ToolCall | None = None


@dataclass(frozen=True)
class Answer:
    """A whole answer. content: None where there are only calls."""

    content: str | None
    reasoning: str | None
    calls: tuple[ToolCall, ...]


class AnswerParser:
    """Takes an answer apart. Contents, reasonings and calls together are all of it, but for marks
    and the whitespace beside them."""

    def __init__(
        self,
        tokenizer: Any,
        fields: Mapping[str, Any] | None,
        family: Family | None,
        names: Iterable[str] = (),
    ) -> None:
        """fields: of a response template; None where all is content"""
        self.family, self.names = family, frozenset(names)
        self.tokenizer = tokenizer
        self.template: dict[str, Any] | None = None
        self.parser: Any = None
        self.marks: dict[int, str] = {}
        if fields is not None:
            self.template = {"start_anchor": "\0", "fields": {"content": CONTENT, **fields}}
            self.parser = parser_of(tokenizer, self.template)
            self.marks = special_marks(tokenizer, self.template)
        calls = (fields or {}).get("tool_calls", {})
        self.has_json = family is not None or calls.get("content") == "json"
        self.region = "content"
        self.fresh = False  # the region was opened by the newest text
        self.calls = 0
        self.after_mark = False  # whitespace that comes next belongs to the mark
        self.raw = ""  # text since the last that was given out, marks and all
        self.newest = ""
        self.in_string = self.escapes = False

    @classmethod
    def of(
        cls, tokenizer: Any, tools: Sequence[Mapping[str, Any]] | None = None, before: str = ""
    ) -> AnswerParser:
        """For the answers of a tokenizer's model, by the response template that it brings, else by
        its family.

        tools: in OpenAI's form; without any, nothing is a call
        before: the end of the prompt, which may have begun the reasoning

        Raises ConfigError where transformers has no response parser.
        """
        own = getattr(tokenizer, "response_template", None)
        family = family_of(tokenizer)
        if own:
            fields = {name: dict(field) for name, field in own["fields"].items()}
            fields["content"] = {**fields.get("content", {}), **CONTENT}
            family = None
        else:
            fields = {}
            if THINK in template_text(tokenizer) or THINK in tokenizer.get_added_vocab():
                fields["reasoning_content"] = REASONING
            if family:
                fields["tool_calls"] = {**family.region, **REPEATED}
        if not tools:
            fields.pop("tool_calls", None)
        parser = cls(tokenizer, fields or None, family, map(name_of, tools or ()))
        if parser.parser is not None and before.rstrip().endswith(THINK):
            parser.feed(THINK)
        return parser

    def feed(self, text: str, token: int | None = None) -> list[Delta]:
        """More of the answer. token: the newest; a special one has no text, but may be a mark."""
        if self.parser is None:
            return [Delta(content=text)] if text else []
        mark = "" if token is None else self.marks.get(token, "")
        found: list[Delta] = []
        for run in RUNS.findall(mark + text):
            parts = run if self.region == "tool_calls" else [run]
            for part in parts:
                found += self.push(part)
        return joined(found)

    def close(self) -> list[Delta]:
        """What was held back until the answer ended."""
        if self.parser is None:
            return []
        try:
            _, events = self.parser.finalize()
        except Exception:  # of what their template makes of a region
            return self.broken_call()
        return joined(self.deltas(events))

    def push(self, text: str) -> list[Delta]:
        in_call = self.region == "tool_calls"
        fed = self.escaped(text) if in_call and self.has_json else text
        self.raw += text
        self.newest, self.fresh = text, False
        try:
            events = self.parser.feed(fed)
        except Exception:  # of what their template makes of a region
            self.region, self.parser = "content", parser_of(self.tokenizer, self.template)
            return self.broken_call()
        return self.deltas(events)

    def escaped(self, letter: str) -> str:
        """A letter of a call as the parser sees it; within strings no mark is left."""
        fed = letter
        if self.in_string:
            fed = letter if self.escapes else ESCAPES.get(letter, letter)
            if not self.escapes and letter == '"':
                self.in_string = False
            self.escapes = letter == "\\" and not self.escapes
        elif letter == '"':
            self.in_string, self.escapes = True, False
        return fed

    def deltas(self, events: Iterable[Mapping[str, Any]]) -> list[Delta]:
        found: list[Delta] = []
        for event in events:
            act = EVENTS[event["type"]]
            found += act(self, event)
        return found

    def opened(self, event: Mapping[str, Any]) -> list[Delta]:
        self.region = event["field"]
        self.fresh = True
        if self.region != "content":
            self.after_mark = True
        if self.region == "tool_calls":
            self.in_string = self.escapes = False
            self.raw = self.raw or (self.family.mark if self.family else "")
        return []

    def continued(self, event: Mapping[str, Any]) -> list[Delta]:
        text = event["text"]
        if self.region == "tool_calls":
            if self.fresh:  # it came before the region was known
                for letter in text:
                    self.escaped(letter)
            return []
        self.raw = self.raw.partition(text)[2]
        if self.after_mark:
            text = text.lstrip()
        if not text:
            return []
        self.after_mark = False
        if self.region in NAMES_OF_REASONING:
            return [Delta(reasoning=text)]
        return [Delta(content=text)]

    def closed(self, event: Mapping[str, Any]) -> list[Delta]:
        region, self.region = self.region, "content"
        if region == "content":
            return []
        self.after_mark = True
        if region != "tool_calls":
            self.raw = self.newest.lstrip()
            return []
        try:
            calls = self.calls_in(event["value"])
        except (ValueError, RecursionError):
            return self.broken_call()
        self.forget_call()
        return [Delta(call=self.numbered(call)) for call in calls]

    def calls_in(self, value: Any) -> list[Call]:
        if self.family is None:  # their own template has parsed it
            return list(map(call_of, value if isinstance(value, list) else [value]))
        calls = self.family.calls(value)
        if self.family.bare and not all(name in self.names for name, _ in calls):
            raise ValueError("no tool")
        return calls

    def numbered(self, call: Call) -> ToolCall:
        name, arguments = call
        self.calls += 1
        return ToolCall(self.calls - 1, f"call_{uuid4().hex[:24]}", name, arguments)

    def broken_call(self) -> list[Delta]:
        """What looked like a call, as the text that it is."""
        raw = self.raw
        if self.family and "close_pattern" in self.family.region and raw != self.family.mark:
            raw = raw.removesuffix(self.family.mark)  # which is the next call's
        self.forget_call()
        self.after_mark = False
        return [Delta(content=raw)] if raw else []

    def forget_call(self) -> None:
        self.raw = self.newest = ""
        self.in_string = self.escapes = False


CONTENT = {"content": "text", "content_args": {"strip": False}}
REPEATED = {"content": "text", "content_args": {"strip": False}, "repeats": True}
MARKS = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>", "<tool_call>", "</tool_call>")
EVENTS = {
    "region_open": AnswerParser.opened,
    "region_chunk": AnswerParser.continued,
    "region_close": AnswerParser.closed,
}


def parser_of(tokenizer: Any, template: dict[str, Any] | None) -> Any:
    try:
        return tokenizer.get_response_parser(template, prefix="")
    except AttributeError:
        raise ConfigError(
            "taking answers apart needs transformers' response parser, which this version of "
            "transformers has not: pip install 'transformers>=5.13'"
        ) from None


def special_marks(tokenizer: Any, template: Mapping[str, Any]) -> dict[int, str]:
    """The special tokens that a response template looks for: texts have none of them."""
    said = json.dumps(template, ensure_ascii=False)
    named = ((token, tokenizer.convert_ids_to_tokens(token)) for token in tokenizer.all_special_ids)
    return {token: name for token, name in named if name in MARKS or name in said}


def name_of(tool: Mapping[str, Any]) -> str:
    return str(tool.get("function", tool).get("name"))


def joined(deltas: Iterable[Delta]) -> list[Delta]:
    """Neighbours of one kind as one."""
    found: list[Delta] = []
    for delta in deltas:
        last = found[-1] if found else Delta()
        if delta.content is not None and last.content is not None:
            found[-1] = Delta(content=last.content + delta.content)
        elif delta.reasoning is not None and last.reasoning is not None:
            found[-1] = Delta(reasoning=last.reasoning + delta.reasoning)
        else:
            found.append(delta)
    return found


def whole(deltas: Iterable[Delta]) -> Answer:
    """An answer of all its parts."""
    deltas = list(deltas)
    calls = tuple(delta.call for delta in deltas if delta.call is not None)
    content = "".join(delta.content or "" for delta in deltas)
    reasoning = "".join(delta.reasoning or "" for delta in deltas)
    return Answer(content if content or not calls else None, reasoning or None, calls)


def parse_answer(
    tokenizer: Any, text: str, tools: Sequence[Mapping[str, Any]] | None = None
) -> Answer:
    """A whole answer's text, taken apart. Raises as `AnswerParser.of` does."""
    parser = AnswerParser.of(tokenizer, tools)
    return whole([*parser.feed(text), *parser.close()])
