"""Answers are taken apart, however they are cut; nothing of them is lost."""

from __future__ import annotations

import json
from collections.abc import Iterable
from random import Random
from typing import Any

import pytest

from neuralchat_lite.chat.answers import Answer, AnswerParser, parse_answer, whole

transformers = pytest.importorskip("transformers")
PreTrainedTokenizerFast: Any = transformers.PreTrainedTokenizerFast
if not hasattr(PreTrainedTokenizerFast, "get_response_parser"):
    pytest.skip("needs transformers >= 5.13", allow_module_level=True)

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("look", "write")
]
HERMES = "{% if tools %}<tool_call>{% endif %}"
QWEN = "<think></think>" + HERMES
MISTRAL = "[TOOL_CALLS]"


def model_tokenizer(template: str | None, *special: str) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"?": 0}, unk_token="?")),
        additional_special_tokens=list(special),
    )
    made.chat_template = template
    return made


LLAMA = model_tokenizer("tools", "<|python_tag|>")


def taken_apart(tokenizer: Any, parts: Iterable[str], **more: Any) -> Answer:
    parser = AnswerParser.of(tokenizer, TOOLS, **more)
    found = [delta for part in parts for delta in parser.feed(part)]
    return whole([*found, *parser.close()])


def cuts(text: str) -> Iterable[list[str]]:
    """The text whole, letter by letter, and cut at random."""
    yield [text]
    yield list(text)
    for seed in range(5):
        random, parts, rest = Random(seed), [], text
        while rest:
            size = random.randint(1, 9)
            parts.append(rest[:size])
            rest = rest[size:]
        yield parts


def said(answer: Answer) -> tuple[Any, ...]:
    calls = [(call.index, call.name, json.loads(call.arguments)) for call in answer.calls]
    return answer.content, answer.reasoning, calls


TRAP = 'a </tool_call> [TOOL_CALLS] {"b": [1]} \\ "quoted" <think>'
ARGUMENTS = json.dumps({"text": TRAP})


@pytest.mark.parametrize(
    ("tokenizer", "text", "expected"),
    [
        (model_tokenizer(HERMES), "Just text, 1 < 2.\n", ("Just text, 1 < 2.\n", None, [])),
        (model_tokenizer(None), "<tool_call>is text</tool_call>", None),
        (
            model_tokenizer(HERMES),
            'I look.\n<tool_call>\n{"name": "look", "arguments": {"at": 1}}\n</tool_call>\n'
            '<tool_call>{"name": "write", "arguments": ' + ARGUMENTS + "}</tool_call>",
            ("I look.", None, [(0, "look", {"at": 1}), (1, "write", {"text": TRAP})]),
        ),
        (
            model_tokenizer(HERMES),
            '<tool_call>[{"name": "look", "arguments": {}}, {"name": "write", "arguments": '
            + ARGUMENTS
            + "}]</tool_call> Then more.",
            ("Then more.", None, [(0, "look", {}), (1, "write", {"text": TRAP})]),
        ),
        (
            model_tokenizer(QWEN),
            '<think>\nLet me see, 1 < 2.\n</think>\n\n<tool_call>\n{"name": "look", "arguments": '
            "{}}\n</tool_call>",
            (None, "Let me see, 1 < 2.", [(0, "look", {})]),
        ),
        (model_tokenizer(QWEN), "<think>\nSo.\n</think>\n\nYes.", ("Yes.", "So.", [])),
        (model_tokenizer(QWEN), "<think>cut", ("", "cut", [])),
        (
            model_tokenizer(MISTRAL),
            '[TOOL_CALLS][{"name": "look", "arguments": {"at": 2}}, {"name": "write", "arguments": '
            + ARGUMENTS
            + "}]",
            (None, None, [(0, "look", {"at": 2}), (1, "write", {"text": TRAP})]),
        ),
        (
            model_tokenizer(MISTRAL),
            'So. [TOOL_CALLS]look[ARGS]{"at": 2}[TOOL_CALLS]write[ARGS]' + ARGUMENTS,
            ("So.", None, [(0, "look", {"at": 2}), (1, "write", {"text": TRAP})]),
        ),
        (
            LLAMA,
            '{"name": "write", "parameters": ' + ARGUMENTS + "}",
            (None, None, [(0, "write", {"text": TRAP})]),
        ),
        (
            LLAMA,
            '<|python_tag|>{"name": "look", "parameters": {}}; {"name": "look", "parameters": {}}',
            (None, None, [(0, "look", {}), (1, "look", {})]),
        ),
    ],
)
def test_an_answer_is_taken_apart_however_it_is_cut(
    tokenizer: Any, text: str, expected: tuple[Any, ...] | None
) -> None:
    for parts in cuts(text):
        assert said(taken_apart(tokenizer, parts)) == (expected or (text, None, []))


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [
        (model_tokenizer(HERMES), 'Well. <tool_call>{"name": "look"</tool_call> And so on.'),
        (model_tokenizer(HERMES), '<tool_call>{"name": "look", "arguments": 3}</tool_call>'),
        (model_tokenizer(HERMES), '<tool_call>{"name": "look</tool_call>'),
        (model_tokenizer(HERMES), "So <tool_call>"),
        (model_tokenizer(HERMES), "So <tool"),
        (model_tokenizer(MISTRAL), "Well [TOOL_CALLS] are what?"),
        (LLAMA, '{"name": "Anna", "parameters": {}}'),
        (LLAMA, '{"age": 3}'),
        (LLAMA, "{ no JSON"),
    ],
)
def test_what_is_no_call_stays_text(tokenizer: Any, text: str) -> None:
    for parts in cuts(text):
        assert said(taken_apart(tokenizer, parts)) == (text, None, [])


def test_a_broken_call_is_text_and_the_next_one_is_a_call() -> None:
    text = (
        'A <tool_call>{"name"</tool_call><tool_call>{"name": "look", "arguments": {}}</tool_call>'
    )
    for parts in cuts(text):
        answer = taken_apart(model_tokenizer(HERMES), parts)
        assert said(answer) == ('A <tool_call>{"name"</tool_call>', None, [(0, "look", {})])


def test_content_and_reasoning_come_as_they_are_said() -> None:
    parser = AnswerParser.of(model_tokenizer(QWEN), TOOLS)
    assert [delta.reasoning for delta in parser.feed("<think>one ")] == ["one"]
    assert [delta.reasoning for delta in parser.feed("two</think>")] == [" two"]
    assert [delta.content for delta in parser.feed("\nthree")] == ["three"]
    assert parser.close() == []


def test_without_tools_nothing_is_a_call() -> None:
    text = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    assert parse_answer(model_tokenizer(HERMES), text) == Answer(text, None, ())
    assert parse_answer(model_tokenizer(HERMES), text, TOOLS).calls


def test_reasoning_that_the_prompt_began_is_reasoning() -> None:
    answer = taken_apart(model_tokenizer(QWEN), ["So.</think>", "Yes."], before="...<think>\n")
    assert said(answer) == ("Yes.", "So.", [])


def test_a_mark_that_is_a_special_token_has_no_text_and_is_seen() -> None:
    tokenizer = model_tokenizer(MISTRAL, "[TOOL_CALLS]", "</s>")
    parser = AnswerParser.of(tokenizer, TOOLS)
    found = parser.feed("", tokenizer.convert_tokens_to_ids("[TOOL_CALLS]"))
    found += parser.feed('[{"name": "look", "arguments": {}}]')
    found += parser.feed("", tokenizer.convert_tokens_to_ids("</s>"))
    answer = whole([*found, *parser.close()])
    assert said(answer) == (None, None, [(0, "look", {})])


def test_the_template_that_a_tokenizer_brings_comes_first() -> None:
    tokenizer = model_tokenizer(HERMES)
    tokenizer.response_template = {
        "start_anchor": "<turn>",
        "fields": {
            "content": {"content": "text"},
            "thinking": {"open": "<t>", "close": "</t>"},
            "tool_calls": {
                "open": "<c>",
                "close": "</c>",
                "content": "json",
                "repeats": True,
                "transform": {"type": "function", "function": "{content}"},
            },
        },
    }
    call = '{"name": "look", "arguments": {"at": "</c>"}}'
    for parts in cuts(f"<t>So.</t>I look.<c>{call}</c>"):
        answer = taken_apart(tokenizer, parts)
        assert said(answer) == ("I look.", "So.", [(0, "look", {"at": "</c>"})])
    for parts in cuts("I <c>look</c> here"):
        assert said(taken_apart(tokenizer, parts)) == ("I <c>look</c> here", None, [])
