"""Calls of tools in the forms of /v1/messages and /v1/responses."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

import neuralchat_lite as ncl

from .calls import ASK, Client, error_of, with_openai
from .conftest import TEMPLATE

llguidance = pytest.importorskip("llguidance", reason="needs the extra structured")

PLACES = {
    "type": "object",
    "properties": {"at": {"enum": ["here", "there"]}},
    "required": ["at"],
    "additionalProperties": False,
}
TOOL = {"name": "look", "description": "Look there.", "input_schema": PLACES}
FUNCTION = {"type": "function", "name": "look", "parameters": PLACES, "strict": False}
USE = {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "over there"}}
CALL = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": "x y"}'}
RESULT = {"type": "tool_result", "tool_use_id": "x"}
ROOM = 600  # it writes much white space


def message(client: Client, **more: Any) -> httpx.Response:
    body = {"max_tokens": ROOM, "messages": ASK, "temperature": 0, "tools": [TOOL]}
    return client.post("/v1/messages", body | more)


def respond(client: Client, **more: Any) -> httpx.Response:
    body = {"max_output_tokens": ROOM, "input": ASK, "temperature": 0, "tools": [FUNCTION]}
    return client.post("/v1/responses", body | more)


def streamed(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line for line in response.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def prompt_of(model: ncl.Model, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that the model gets from now on."""
    seen: list[str] = []
    made = ncl.Model.sequence

    def sequence(self: ncl.Model, *given: Any, **more: Any) -> Any:
        found = made(self, *given, **more)
        seen.append(self.tokenizer.decode(list(found.prompt.ids)))
        return found

    monkeypatch.setattr(ncl.Model, "sequence", sequence)
    return seen


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "look"}])
def test_a_message_has_the_call_that_is_asked_for(calling: Client, choice: dict[str, Any]) -> None:
    answer = message(calling, tool_choice=choice).json()
    [block] = answer["content"]
    assert answer["stop_reason"] == "tool_use"
    assert block["type"] == "tool_use" and block["name"] == "look" and block["id"]
    assert block["input"]["at"] in ("here", "there")
    found = streamed(message(calling, tool_choice=choice, stream=True))
    assert [one["type"] for one in found] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert found[1]["content_block"] == block | {"id": found[1]["content_block"]["id"], "input": {}}
    assert found[2]["delta"]["type"] == "input_json_delta"
    assert json.loads(found[2]["delta"]["partial_json"]) == block["input"]
    assert found[4]["delta"]["stop_reason"] == "tool_use"


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "name": "look"}], ids=["any", "named"]
)
def test_a_response_has_the_call_that_is_asked_for(calling: Client, choice: Any) -> None:
    answer = respond(calling, tool_choice=choice).json()
    [item] = answer["output"]
    assert answer["status"] == item["status"] == "completed"
    assert item["type"] == "function_call" and item["name"] == "look"
    assert json.loads(item["arguments"])["at"] in ("here", "there")
    assert answer["tool_choice"] == choice and answer["tools"][0]["name"] == "look"
    assert answer["parallel_tool_calls"] is False


def test_the_openai_package_streams_a_response_with_a_call(calling: Client) -> None:
    async def ask(openai: Any) -> Any:
        async with openai.responses.stream(
            model="nano",
            input=ASK,
            tools=[FUNCTION],
            tool_choice="required",
            max_output_tokens=ROOM,
            temperature=0,
        ) as stream:
            found = [one async for one in stream]
            return found, await stream.get_final_response()

    found, final = with_openai(calling, ask)
    assert [one.type.removeprefix("response.") for one in found] == [
        "created",
        "in_progress",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    [call] = final.output
    assert json.loads(call.arguments)["at"] in ("here", "there")
    assert found[2].item.id == found[-2].item.id == call.id and found[2].item.arguments == ""


def test_the_anthropic_package_answers_its_call(
    serving: Callable[..., str], caller: ncl.Model
) -> None:
    anthropic = pytest.importorskip("anthropic", reason="anthropic is not installed")
    client = anthropic.Anthropic(base_url=serving(model=caller), api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": "nano", "tools": [TOOL], "extra_body": {"temperature": 0}}
    choice = {"type": "any"}
    with client.messages.stream(
        messages=ASK, tool_choice=choice, max_tokens=ROOM, **asked
    ) as stream:
        first = stream.get_final_message()
    [use] = first.content
    assert first.stop_reason == "tool_use"
    assert use.name == "look" and use.input["at"] in ("here", "there")
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "nothing"}
    turns = [
        *ASK,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    second = client.messages.create(messages=turns, max_tokens=4, **asked)
    assert second.content[0].type == "text" and second.stop_reason in ("max_tokens", "end_turn")
    assert client.messages.count_tokens(model="nano", messages=turns, tools=[TOOL]).input_tokens


def test_the_template_gets_the_blocks_of_a_message(
    calling: Client, caller: ncl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = prompt_of(caller, monkeypatch)
    thought = {"type": "thinking", "thinking": "hm", "signature": ""}
    said = {"type": "text", "text": "I look."}
    results = [
        {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "a"}]},
        {"type": "tool_result", "tool_use_id": "c1", "content": "b", "is_error": True},
        {"type": "text", "text": "go on"},
    ]
    turns = [
        *ASK,
        {"role": "assistant", "content": [thought, said, USE]},
        {"role": "user", "content": results},
    ]
    assert message(calling, messages=turns, max_tokens=1).status_code == 200
    rest = seen[0].split("### ")[2:]
    assert rest[:4] == [
        "assistant: hm I look.\nover there\n",
        "tool:  a\n",
        "tool:  Error: b\n",
        "user:  go on\n",
    ]
    assert '"description": "Look there."' in seen[0]
    counted = {"messages": turns, "tools": [TOOL]}
    found = calling.post("/v1/messages/count_tokens", counted).json()["input_tokens"]
    assert found == len(caller.tokenizer.encode(seen[0], add_special_tokens=False))


def test_the_template_gets_the_items_of_a_response(
    calling: Client, caller: ncl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = prompt_of(caller, monkeypatch)
    thought = {"type": "reasoning", "id": "rs_1", "summary": []}
    thought["content"] = [{"type": "reasoning_text", "text": "hm"}]
    items = [
        *ASK,
        thought,
        {"role": "assistant", "content": "I look."},
        CALL,
        CALL | {"call_id": "c2", "arguments": '{"at": "z"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "a"},
        {
            "type": "function_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "b"}],
        },
    ]
    assert respond(calling, input=items, max_output_tokens=1).status_code == 200
    assert seen[0].split("### ")[2:-1] == [
        "assistant: hm I look.\nx y\nz\n",
        "tool:  a\n",
        "tool:  b\n",
    ]


@pytest.fixture
def thinker(calling: Client, caller: ncl.Model, monkeypatch: pytest.MonkeyPatch) -> Client:
    """Its template begins the reasoning, and the model never ends it."""
    monkeypatch.setattr(caller.tokenizer, "chat_template", f"{TEMPLATE}<think>\n")
    return calling


def test_what_a_model_thinks_is_a_block_of_its_own(thinker: Client) -> None:
    whole = message(thinker, max_tokens=12).json()["content"]
    assert [block["type"] for block in whole] == ["thinking"] and whole[0]["thinking"]
    found = streamed(message(thinker, max_tokens=12, stream=True))
    empty = {"type": "thinking", "thinking": "", "signature": ""}
    assert found[1] == {"type": "content_block_start", "index": 0, "content_block": empty}
    deltas = [one["delta"] for one in found if one["type"] == "content_block_delta"]
    assert {delta["type"] for delta in deltas} == {"thinking_delta"}
    assert "".join(delta["thinking"] for delta in deltas) == whole[0]["thinking"]


def test_what_a_model_thinks_is_an_item_of_its_own(thinker: Client) -> None:
    whole = respond(thinker, max_output_tokens=12).json()
    [item] = whole["output"]
    assert item["type"] == "reasoning" and item["status"] == "incomplete"
    assert whole["usage"]["output_tokens_details"]["reasoning_tokens"] == 12
    found = streamed(respond(thinker, max_output_tokens=12, stream=True))
    deltas = [one["delta"] for one in found if one["type"] == "response.reasoning_text.delta"]
    assert [{"type": "reasoning_text", "text": "".join(deltas)}] == item["content"]


def test_blocks_are_numbered_and_each_ends_before_the_next(
    calling: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer with a text and two calls, which the nano model does not write."""
    from neuralchat_lite.chat.answers import AnswerParser, Delta, ToolCall

    calls = [Delta(call=ToolCall(at, f"c{at}", "look", '{"at": "here"}')) for at in range(2)]
    monkeypatch.setattr(AnswerParser, "close", lambda self: calls)
    found = streamed(message(calling, max_tokens=5, stream=True))
    marks = [
        (one["type"].removeprefix("content_block_"), one["index"])
        for one in found
        if one["type"] in ("content_block_start", "content_block_stop")
    ]
    assert marks == [(mark, at) for at in range(3) for mark in ("start", "stop")]
    found = streamed(respond(calling, max_output_tokens=5, stream=True))
    marks = [
        (one["type"].removeprefix("response.output_item."), one["output_index"])
        for one in found
        if one["type"].startswith("response.output_item.")
    ]
    assert marks == [(mark, at) for at in range(3) for mark in ("added", "done")]
    done = [one["item"] for one in found if one["type"] == "response.output_item.done"]
    assert done == found[-1]["response"]["output"]
    assert len({item["id"] for item in done}) == 3


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0"),
        ({"tools": [], "tool_choice": {"type": "any"}}, "there are no tools"),
        ({"tool_choice": {"type": "tool", "name": "fly"}}, "no tool 'fly'"),
        ({"tool_choice": {"type": "auto", "name": "look"}}, "leave it out"),
        (
            {"messages": [{"role": "user", "content": [RESULT]}]},
            "no tool_use before",
        ),
        ({"messages": [{"role": "user", "content": [USE]}]}, "text, tool_result alone"),
        (
            {"messages": [*ASK, {"role": "assistant", "content": [USE | {"input": 1}]}]},
            "type tool_use: input",
        ),
        ({"messages": [*ASK, {"role": "assistant", "content": [USE]}]}, "more than text"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_messages_cannot_honour_is_named(
    calling: Client, more: dict[str, Any], said: str
) -> None:
    refused = message(calling, **more)
    assert refused.status_code == 400 and said in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"tools": [], "tool_choice": "required"}, "there are no tools"),
        ({"tool_choice": {"type": "function", "name": "fly"}}, "no tool 'fly'"),
        ({"input": [*ASK, CALL]}, "function_call_output"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        (
            {"input": [{"type": "function_call_output", "call_id": "x", "output": "a"}]},
            "no function_call before",
        ),
        ({"input": [*ASK, CALL | {"arguments": "{"}]}, "JSON object"),
        (
            {"tool_choice": "required", "text": {"format": {"type": "json_object"}}},
            "send one of them",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_responses_cannot_honour_is_named(
    calling: Client, more: dict[str, Any], said: str
) -> None:
    refused = respond(calling, **more)
    assert refused.status_code == 400 and said in error_of(refused)["message"]


def test_a_model_that_knows_no_tools_gets_none(client: Client) -> None:
    for refused in (message(client), respond(client)):
        assert refused.status_code == 400 and "does not read tools" in refused.text
