"""/v1/messages, in Anthropic's form."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

import neuralchat_lite as ncl
from neuralchat_lite.server.routes.texts import LONGEST_TEXT

from .calls import ASK, Client

BODY = {"model": "nano", "max_tokens": 24, "messages": ASK, "temperature": 0}


def ask(client: Client, **more: Any) -> httpx.Response:
    return client.post("/v1/messages", BODY | more)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    found = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_a_message_is_the_librarys_answer(client: Client, nano: ncl.Model) -> None:
    reply = nano.generate(ASK, max_new_tokens=24)
    answer = ask(client).json()
    assert answer["content"] == [{"type": "text", "text": reply.text}]
    assert answer["type"] == "message" and answer["role"] == "assistant"
    assert answer["stop_reason"] == "max_tokens" and answer["stop_sequence"] is None
    used = answer["usage"]
    assert used["input_tokens"] + used["cache_read_input_tokens"] == reply.prompt_tokens
    assert used["output_tokens"] == 24
    assert ask(client, max_tokens=200).json()["stop_reason"] == "end_turn"


def test_a_stream_says_what_the_whole_message_says(client: Client) -> None:
    whole = ask(client).json()
    found = events(ask(client, stream=True))
    kinds = [one["type"] for one in found]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    text = "".join(one["delta"]["text"] for one in found if one["type"] == "content_block_delta")
    assert text == whole["content"][0]["text"]
    assert found[-2]["delta"]["stop_reason"] == "max_tokens"
    assert found[-2]["usage"]["output_tokens"] == 24
    assert found[0]["message"]["usage"]["input_tokens"] == 21


def test_the_text_that_ended_it_is_named(client: Client) -> None:
    answer = ask(client, stop_sequences=["never", "numbers"]).json()
    assert answer["stop_reason"] == "stop_sequence" and answer["stop_sequence"] == "numbers"
    assert "numbers" not in answer["content"][0]["text"]


def test_a_last_turn_of_the_assistant_is_gone_on_with(client: Client) -> None:
    begun = [*ASK, {"role": "assistant", "content": "Add the"}]
    answer = ask(client, messages=begun).json()["content"][0]["text"]
    assert answer.startswith(" first")


def test_tokens_are_counted_without_an_answer(client: Client) -> None:
    found = client.post("/v1/messages/count_tokens", {"model": "nano", "messages": ASK})
    assert found.json() == {"input_tokens": 21}
    long = [{"role": "user", "content": "x" * (LONGEST_TEXT + 1)}]
    refused = client.post("/v1/messages/count_tokens", {"model": "nano", "messages": long})
    assert refused.status_code == 400
    assert str(LONGEST_TEXT) in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"name": "f", "input_schema": {}}]},  # which the template does not read
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"tool_choice": {"type": "any"}},
        {"tool_choice": {"type": "tool"}},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"max_tokens": None},
        {"unknown": 1},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        {"messages": [{"role": "system", "content": "a"}]},
    ],
)
def test_what_cannot_be_honoured_is_a_400_in_that_form(
    client: Client, more: dict[str, Any]
) -> None:
    refused = ask(client, **more)
    assert refused.status_code == 400
    assert refused.json()["type"] == "error"
    assert refused.json()["error"]["type"] == "invalid_request_error"


def test_a_wrong_key_has_that_form_too(client_of: Callable[..., Client]) -> None:
    refused = ask(client_of(api_keys=("k",)))
    assert refused.status_code == 401
    assert refused.json()["error"]["type"] == "authentication_error"
