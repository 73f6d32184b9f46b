"""/v1/responses, and the openai client's helpers for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import neuralchat_lite as ncl

from .calls import ASK, Client, error_of

TEXT = ASK[0]["content"]
BODY = {"model": "nano", "input": TEXT, "temperature": 0, "max_output_tokens": 200}


@pytest.fixture
def openai_client(serving: Callable[..., str]) -> Any:
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{serving()}/v1", api_key="none", max_retries=0)


def test_a_response_is_the_librarys_answer(openai_client: Any, nano: ncl.Model) -> None:
    reply = nano.generate(ASK, max_new_tokens=200)
    response = openai_client.responses.create(**BODY)
    assert response.output_text == reply.text
    assert response.status == "completed"
    assert response.usage.input_tokens == reply.prompt_tokens
    assert response.usage.output_tokens == len(reply.token_ids)
    assert response.temperature == 0


def test_the_streaming_helper_puts_the_response_together(openai_client: Any) -> None:
    whole = openai_client.responses.create(**BODY)
    with openai_client.responses.stream(**BODY) as stream:
        found = list(stream)
        final = stream.get_final_response()
    assert final.output_text == whole.output_text
    text = "".join(one.delta for one in found if one.type == "response.output_text.delta")
    assert text == whole.output_text
    assert [one.sequence_number for one in found] == list(range(len(found)))
    assert found[0].type == "response.created" and found[-1].type == "response.completed"


def test_an_answer_that_was_cut_is_incomplete(client: Client) -> None:
    found = client.post("/v1/responses", BODY | {"max_output_tokens": 3}).json()
    assert found["status"] == "incomplete"
    assert found["incomplete_details"] == {"reason": "max_output_tokens"}


def test_an_answer_is_an_item_of_the_next_input(openai_client: Any) -> None:
    first = openai_client.responses.create(**BODY)
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": TEXT}]},
        *[item.model_dump(exclude_none=True) for item in first.output],
        {"role": "user", "content": "calculate 1 + 1"},
    ]
    second = openai_client.responses.create(**BODY | {"input": items})
    assert second.output_text


@pytest.mark.parametrize(
    "field",
    ["previous_response_id", "tools", "reasoning", "text", "background", "nothing"],
)
def test_what_cannot_be_honoured_is_named(client: Client, field: str) -> None:
    asked: dict[str, Any] = {
        "previous_response_id": "resp_1",
        "tools": [{"type": "web_search"}],
        "reasoning": {"effort": "high"},
        "text": {"format": {"type": "json_schema"}},
        "background": True,
        "nothing": 1,
    }
    refused = client.post("/v1/responses", BODY | {field: asked[field]})
    assert refused.status_code == 400 and error_of(refused)["param"].startswith(field)


def test_an_answer_keeps_to_a_schema(openai_client: Any) -> None:
    pytest.importorskip("llguidance", reason="forms of answers need the extra `structured`")
    from pydantic import BaseModel

    class Sum(BaseModel):
        total: bool

    response = openai_client.responses.parse(**BODY, text_format=Sum)
    assert isinstance(response.output_parsed, Sum)
    refused = openai_client.with_options(max_retries=0).responses
    schema = {"type": "object", "properties": {"a": {"type": "nonsense"}}}
    asked = {"format": {"type": "json_schema", "name": "a", "schema": schema}}
    import openai

    with pytest.raises(openai.BadRequestError):
        refused.create(**BODY, text=asked)


def test_a_schema_beside_another_type_of_format_is_refused(client: Client) -> None:
    for kind in ("text", "json_object"):
        asked = {"input": "a", "text": {"format": {"type": kind, "schema": {"type": "object"}}}}
        refused = client.post("/v1/responses", asked)
        assert refused.status_code == 400
        assert error_of(refused)["param"] == "text.format.schema"
