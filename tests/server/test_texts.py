"""/tokenize, /detokenize, /apply-template and /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import neuralchat_lite as ncl

from .calls import ASK, Client, error_of, post_raw

TEXT = "calculate 1 + 1"


def test_texts_become_the_tokenizers_ids_and_texts_again(client: Client, nano: ncl.Model) -> None:
    plain = nano.tokenizer.encode(TEXT, add_special_tokens=False)
    special = nano.tokenizer.encode(TEXT)
    for body, want in (
        ({"prompt": TEXT}, special),
        ({"prompt": TEXT, "add_special_tokens": False}, plain),
        ({"content": TEXT}, plain),
        ({"content": TEXT, "add_special": True}, special),
    ):
        found = client.post("/tokenize", body).json()
        assert found["tokens"] == want and found["count"] == len(want)
    assert client.post("/detokenize", {"tokens": plain}).json()["content"] == TEXT
    assert client.post("/detokenize", {"tokens": []}).json()["prompt"] == ""
    assert client.post("/detokenize", {"tokens": [10**9]}).status_code == 400


def test_tokens_have_names_and_pieces(client: Client) -> None:
    named = client.post("/tokenize", {"content": TEXT, "return_token_strs": True}).json()
    assert len(named["token_strs"]) == named["count"]
    pieces = client.post("/tokenize", {"content": TEXT, "with_pieces": True}).json()["tokens"]
    assert "".join(piece["piece"] for piece in pieces) == TEXT


def test_a_piece_has_the_space_that_its_token_begins_with(
    client: Client, nano: ncl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = nano.tokenizer.decode

    def as_sentencepiece(*given: Any, **more: Any) -> str:
        return decode(*given, **more).removeprefix(" ")

    monkeypatch.setattr(nano.tokenizer, "decode", as_sentencepiece)
    tokens = client.post("/tokenize", {"content": f" {TEXT}", "with_pieces": True}).json()["tokens"]
    assert "".join(token["piece"] for token in tokens) == f" {TEXT}"


def test_the_piece_of_a_part_of_a_character_is_its_bytes() -> None:
    from neuralchat_lite.server.routes.texts import piece_of

    known = {5: ("\ufffd", b"\xe2"), 6: (" a", b" a"), 7: ("\ufffd", None)}
    names: Any = SimpleNamespace(
        name=lambda token: known[token][0], bytes_of=lambda token: known[token][1]
    )
    assert [piece_of(names, token) for token in known] == [[0xE2], " a", "\ufffd"]


def test_the_template_is_the_models(client: Client, nano: ncl.Model) -> None:
    want = nano.tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True)
    assert client.post("/apply-template", {"messages": ASK}).json() == {"prompt": want}
    ids = client.post("/tokenize", {"messages": ASK}).json()["tokens"]
    assert ids == nano.tokenizer.encode(want, add_special_tokens=False)
    answer = client.chat(max_tokens=1).json()
    assert answer["usage"]["prompt_tokens"] == len(ids)
    without = client.post("/apply-template", {"messages": ASK, "add_generation_prompt": False})
    assert want.startswith(without.json()["prompt"]) and without.json()["prompt"] != want


def test_a_text_that_would_take_all_memory_is_refused(client: Client) -> None:
    for body in ({"content": "a" * 1_100_000}, {"messages": [{**ASK[0], "content": "a" * 2**20}]}):
        refused = client.post("/tokenize", body)
        assert refused.status_code == 400
        assert "1048576 are tokenized" in error_of(refused)["message"]


def test_one_text_is_asked_for(client: Client) -> None:
    for body in ({}, {"prompt": "a", "content": "a"}, {"messages": []}):
        assert client.post("/tokenize", body).status_code == 400


@pytest.mark.parametrize(
    "idle",
    [
        {"chat_template_kwargs": {"a": 1}},
        {"add_generation_prompt": True},
        {"add_special": True, "add_special_tokens": False},
    ],
    ids=str,
)
def test_a_field_without_effect_is_refused(client: Client, idle: dict[str, Any]) -> None:
    refused = client.post("/tokenize", {"prompt": "a", **idle})
    assert refused.status_code == 400 and next(iter(idle)) in error_of(refused)["message"]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_are_the_librarys(client: Client, nano: ncl.Model, pooling: str) -> None:
    texts = ["calculate 1", "calculate 2 + 3"]
    want = nano.embed(texts, pooling)  # type: ignore[arg-type]
    body = {"input": texts, "pooling": pooling}
    found = client.post("/v1/embeddings", body).json()
    assert [one["index"] for one in found["data"]] == [0, 1]
    np.testing.assert_allclose([one["embedding"] for one in found["data"]], want, atol=1e-6)
    assert found["usage"]["prompt_tokens"] == sum(len(nano.tokenizer.encode(t)) for t in texts)
    packed = client.post("/v1/embeddings", {**body, "encoding_format": "base64"}).json()["data"]
    vectors = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in packed]
    np.testing.assert_array_equal(vectors, want)


def test_texts_are_embedded_within_the_time_of_a_request(
    client_of: Callable[..., Client], nano: ncl.Model
) -> None:
    client = client_of(request_timeout=1e-9)
    refused = client.post("/v1/embeddings", {"input": [TEXT]})
    assert refused.status_code == 504 and error_of(refused)["code"] == "request_timeout"
    assert client.app.state.desks.of(None).open == 0


def test_a_client_that_leaves_ends_its_embeddings(
    client: Client, nano: ncl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, blocks = threading.Event(), []
    hidden_states = nano.decoder.hidden_states  # type: ignore[attr-defined]

    def slow(*given: Any) -> Any:
        blocks.append(given)
        begun.set()
        time.sleep(0.05)
        return hidden_states(*given)

    monkeypatch.setattr(nano.decoder, "hidden_states", slow)

    async def send(message: Any) -> None:
        raise AssertionError("nobody is there to answer")

    body = {"input": [[5] * 250] * 100}
    asyncio.run(post_raw(client.app, "/v1/embeddings", body, send, begun.is_set))
    desk = client.app.state.desks.of(None)
    assert 0 < len(blocks) < 90 and desk.open == 0


def test_one_text_and_ids_are_embedded_too(client: Client, nano: ncl.Model) -> None:
    ids = nano.tokenizer.encode(TEXT)
    found = [
        client.post("/v1/embeddings", {"input": given}).json()["data"]
        for given in (TEXT, [TEXT], ids, [ids])
    ]
    assert all(one == found[0] for one in found)


def test_what_cannot_be_embedded_is_named(client: Client) -> None:
    for body, field in (
        ({"input": "a", "dimensions": 8}, "dimensions"),
        ({"input": "a", "pooling": "cls"}, "pooling"),
        ({}, "input"),
    ):
        assert error_of(client.post("/v1/embeddings", body))["param"] == field
    for empty in ("", [], [""]):
        assert client.post("/v1/embeddings", {"input": empty}).status_code == 400
