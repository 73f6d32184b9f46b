"""What a body may say: everything else is a 400 that names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .calls import ASK, Client, error_of


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temprature", 1),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("response_format", {"type": "xml"}),
        ("store", True),
        ("temperature", "warm"),
        ("temperature", -1),
        ("n", 0),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("seed", -1),
        ("top_logprobs", 21),
        ("logit_bias", {"1": 101}),
        ("messages", []),
        ("messages", "hello"),
        ("stream", "yes"),
    ],
)
def test_a_field_that_cannot_be_honoured_is_named(client: Client, field: str, value: Any) -> None:
    refused = client.chat(**{field: value})
    error = error_of(refused)
    assert refused.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"].startswith(field) and field in error["message"]


@pytest.mark.parametrize(
    "idle", [{"response_format": {"type": "text"}}, {"tools": []}, {"tools": None}, {"user": "me"}]
)
def test_a_field_that_asks_for_nothing_passes(client: Client, idle: dict[str, Any]) -> None:
    assert client.chat(**idle).status_code == 200


def test_unknown_fields_of_messages_are_named_too(client: Client) -> None:
    refused = client.chat(messages=[{**ASK[0], "weight": 1}])
    assert error_of(refused)["param"].endswith("weight")


def test_an_image_is_refused(client: Client) -> None:
    part = {"type": "image_url", "image_url": {"url": "http://x/y.png"}}
    refused = client.chat(messages=[{"role": "user", "content": [part]}])
    assert refused.status_code == 400 and "image_url" in error_of(refused)["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe\xfd",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "a"}], "\\udfff": 1}',
        b'{"temperature": ' + b"9" * 5000 + b"}",
        b'{"temperature": NaN, "messages": [{"role": "user", "content": "a"}]}',
        b"[" * 100_000,
        b'{"messages": ' + b"[" * 100_000,
    ],
)
def test_a_broken_body_is_a_400(client: Client, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    refused = client.post("/v1/chat/completions", content=body, headers=headers)
    assert refused.status_code == 400
    assert error_of(refused)["type"] == "invalid_request_error"


def test_a_body_that_is_not_declared_as_json_is_refused(client: Client) -> None:
    """A web page of others may send one without asking, in a browser of ours."""
    body = b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}'
    refused = client.post(
        "/v1/chat/completions", content=body, headers={"Content-Type": "text/plain"}
    )
    assert refused.status_code == 400


def test_an_unknown_model_is_a_404_that_lists_those_there(client: Client) -> None:
    refused = client.chat(model="gpt-4o")
    assert refused.status_code == 404
    assert error_of(refused)["code"] == "model_not_found"
    assert "nano" in error_of(refused)["message"]


def test_an_unknown_path_and_method_have_the_same_form(client: Client) -> None:
    assert error_of(client.get("/v2"))["type"] == "not_found_error"
    assert client.get("/v1/chat/completions").status_code == 405


def test_a_filter_for_all_answers_needs_no_temperature_beside(
    client_of: Callable[..., Client],
) -> None:
    client = client_of(sampling={"top_p": 0.5})
    told = client.get("/v1/models/nano").json()["sampling_defaults"]
    assert told == {"temperature": 1.0, "top_p": 0.5}
    assert client.chat(temperature=None).status_code == 200
    assert client.chat(temperature=0).status_code == 200
