"""Forms of answers and calls of tools, as the openai package asks for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import neuralchat_lite as ncl

from .calls import ASK, Client, content, error_of, events, with_openai

pytest.importorskip("llguidance", reason="needs the extra structured")
pydantic = pytest.importorskip("pydantic", reason="needs pydantic")

PLACES = {
    "type": "object",
    "properties": {"at": {"enum": ["here", "there"]}},
    "required": ["at"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "look", "parameters": PLACES}}
STRICT = {"type": "function", "function": {"name": "look", "parameters": PLACES, "strict": True}}


class Place(pydantic.BaseModel):  # type: ignore[misc, name-defined]
    city: str = pydantic.Field(max_length=6)
    large: bool


FORMS: list[tuple[dict[str, Any], Callable[[str], bool]]] = [
    ({"guided_json": PLACES}, lambda text: json.loads(text)["at"] in ("here", "there")),
    ({"guided_json": json.dumps(PLACES)}, lambda text: "at" in json.loads(text)),
    ({"guided_regex": "[0-9]{3}-x"}, lambda text: text[3:] == "-x"),
    ({"guided_choice": ["yes", "no"]}, lambda text: text in ("yes", "no")),
    ({"guided_grammar": 'start: "a" "b"'}, lambda text: text == "ab"),
    (
        {"response_format": {"type": "json_object", "schema": PLACES}},
        lambda text: "at" in json.loads(text),
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": PLACES}}},
        lambda text: "at" in json.loads(text),
    ),
    ({"structured_outputs": {"choice": ["perhaps"]}}, lambda text: text == "perhaps"),
    ({"structured_outputs": {"json": PLACES}}, lambda text: "at" in json.loads(text)),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "p", "schema": PLACES},
            }
        },
        lambda text: "at" in json.loads(text),
    ),
]


@pytest.mark.parametrize(("asked", "holds"), FORMS, ids=[str(asked)[:40] for asked, _ in FORMS])
def test_an_answer_has_the_form_that_is_asked_for(
    asked: dict[str, Any], holds: Callable[[str], bool], client: Client
) -> None:
    answer = client.chat(**asked, max_tokens=400).json()
    [choice] = answer["choices"]
    assert choice["finish_reason"] == "stop" and holds(choice["message"]["content"])
    found = events(client.chat(**asked, max_tokens=400, stream=True))
    assert content(found) == choice["message"]["content"]
    [text] = client.complete(**asked, max_tokens=400).json()["choices"]
    assert holds(text["text"])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"guided_json": {"not": {}}}, '"not"'),
        ({"guided_regex": "("}, "unclosed group"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "send one of them"),
        ({"structured_outputs": {}}, "give one of json"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"guided_choice": []}, "guided_choice"),
        (
            {
                "response_format": {
                    "type": "json_object",
                    "json_schema": {"name": "p", "schema": PLACES},
                }
            },
            "would have no effect",
        ),
        ({"structured_outputs": {"structural_tag": "x"}}, "structural_tag"),
        ({"response_format": {"type": "json_schema"}}, "needs a json_schema"),
        ({"response_format": {"type": "text", "schema": PLACES}}, "json_schema.schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"guided_regex": "a", "stop": "b"}, "stop could break"),
        ({"guided_regex": "a", "min_tokens": 3}, "min_tokens could break"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [TOOL]}, "does not read tools"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    asked: dict[str, Any], said: str, client: Client
) -> None:
    response = client.chat(**asked)
    assert response.status_code == 400
    assert said in error_of(response)["message"]


def test_the_openai_package_parses_answers_into_pydantic_classes(client: Client) -> None:
    async def ask(openai: Any) -> Any:
        return await openai.chat.completions.parse(
            model="nano", messages=ASK, response_format=Place, max_tokens=600, temperature=0
        )

    parsed = with_openai(client, ask).choices[0].message.parsed
    assert isinstance(parsed, Place)


def test_a_call_that_is_required_comes(calling: Client) -> None:
    named = {"type": "function", "function": {"name": "look"}}
    for choice in ("required", named):
        answer = calling.chat(tools=[TOOL], tool_choice=choice, max_tokens=600).json()
        [found] = answer["choices"]
        assert found["finish_reason"] == "tool_calls" and found["message"]["content"] is None
        [call] = found["message"]["tool_calls"]
        assert call["function"]["name"] == "look" and call["id"]
        assert json.loads(call["function"]["arguments"])["at"] in ("here", "there")
        parts = events(calling.chat(tools=[TOOL], tool_choice=choice, max_tokens=600, stream=True))
        deltas = [part["choices"][0] for part in parts]
        [streamed] = [one["delta"]["tool_calls"] for one in deltas if "tool_calls" in one["delta"]]
        assert streamed[0]["function"] == call["function"] and streamed[0]["index"] == 0
        assert deltas[-1]["finish_reason"] == "tool_calls" and content(parts) == ""
    unknown = {"type": "function", "function": {"name": "fly"}}
    response = calling.chat(tools=[TOOL], tool_choice=unknown)
    assert response.status_code == 400 and "no tool 'fly'" in error_of(response)["message"]


def test_tools_are_in_the_prompt_and_their_answers_too(calling: Client) -> None:
    without = calling.chat(max_tokens=1).json()["usage"]["prompt_tokens"]
    free = calling.chat(tools=[TOOL], max_tokens=5).json()
    assert free["usage"]["prompt_tokens"] > without
    assert free["choices"][0]["message"]["content"] is not None
    none = calling.chat(tools=[TOOL], tool_choice="none", max_tokens=1).json()
    assert none["usage"]["prompt_tokens"] == without
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "look", "arguments": '{"at": "x"}'},
    }
    turns = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "nothing there"},
    ]
    answered = calling.chat(messages=turns, tools=[TOOL], max_tokens=5)
    assert answered.status_code == 200
    assert answered.json()["usage"]["prompt_tokens"] > free["usage"]["prompt_tokens"]


def test_calls_that_the_template_leaves_out_are_refused(
    client: Client, calling: Client, caller: ncl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    turns = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "a"},
    ]
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    monkeypatch.setattr(caller.tokenizer, "chat_template", plain)
    refused = calling.chat(messages=turns)
    assert refused.status_code == 400 and "leaves them out" in error_of(refused)["message"]
    monkeypatch.setattr(caller.tokenizer, "chat_template", None)
    assert calling.chat(messages=turns[:2] + ASK).status_code == 400
    # Qwen3's looks into the content, and transformers has none for a null
    careful = plain + "{% for m in messages %}{{ m.content.strip() }}{{ m.tool_calls }}{% endfor %}"
    monkeypatch.setattr(caller.tokenizer, "chat_template", careful)
    assert calling.chat(messages=turns, max_tokens=1).status_code == 200


def test_the_template_is_shown_with_tools(calling: Client, client: Client) -> None:
    given = {"messages": ASK, "tools": [TOOL]}
    prompt = calling.post("/apply-template", given).json()["prompt"]
    assert '"name": "look"' in prompt
    asked = calling.chat(tools=[TOOL], max_tokens=1).json()["usage"]["prompt_tokens"]
    assert calling.post("/tokenize", given).json()["count"] == asked
    refused = client.post("/apply-template", given)  # a template that reads none
    assert refused.status_code == 400 and error_of(refused)["param"] == "tools"
    assert client.post("/tokenize", {"prompt": "a", "tools": [TOOL]}).status_code == 400


def test_the_openai_package_streams_and_parses_calls(calling: Client, caller: ncl.Model) -> None:
    from openai import pydantic_function_tool

    newline = caller.tokenizer.convert_tokens_to_ids("\n")

    async def ask(openai: Any) -> Any:
        async with openai.chat.completions.stream(
            model="nano",
            messages=ASK,
            tools=[pydantic_function_tool(Place)],
            tool_choice="required",
            max_tokens=600,
            temperature=0,
            logit_bias={str(newline): -100},  # its indentation would fill the context
        ) as stream:
            async for _ in stream:
                pass
            return await stream.get_final_completion()

    [call] = with_openai(calling, ask).choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Place)


def test_a_strict_tool_leaves_the_model_free_to_answer(calling: Client) -> None:
    free = calling.chat(tools=[TOOL], max_tokens=20).json()["choices"][0]
    strict = calling.chat(tools=[STRICT], max_tokens=20).json()["choices"][0]
    assert strict["message"]["content"] and free["message"]["content"]
