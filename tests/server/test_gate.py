"""Who may ask, for how much, and what becomes of those who do not behave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

import neuralchat_lite as ncl

from .calls import ASK, Client, error_of, events, post_raw

ClientOf = Callable[..., Client]
Serving = Callable[..., str]
LONG = {"messages": ASK, "max_tokens": 400, "ignore_eos": True, "temperature": 0}


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json", "/v1/models/nano"])
def test_a_key_is_asked_for(client_of: ClientOf, path: str) -> None:
    client = client_of(api_keys=("one", "two"))
    for headers in (
        {},
        {"Authorization": "Bearer three"},
        {"Authorization": "Bearer "},
        {"Authorization": "one"},
        {"Authorization": "Basic one"},
        {"x-api-key": "three"},
    ):
        refused = client.get(path, headers=headers)
        assert refused.status_code == 401
        assert error_of(refused)["code"] == "invalid_api_key"
    for headers in ({"Authorization": "Bearer two"}, {"x-api-key": "one"}):
        assert client.get(path, headers=headers).status_code == 200


def test_health_needs_no_key(client_of: ClientOf) -> None:
    client = client_of(api_keys=("one",))
    assert client.get("/health").status_code == 200
    assert client.get("/ready").status_code == 200


def test_a_key_is_asked_for_before_the_body_is_read(client_of: ClientOf) -> None:
    assert client_of(api_keys=("one",), max_body_bytes=10).chat().status_code == 401


def test_a_large_body_is_refused(client_of: ClientOf) -> None:
    client = client_of(max_body_bytes=1000)
    assert client.chat(user="x" * 2000).status_code == 413

    body = b" " * 2000
    chunked = client.post(
        "/v1/chat/completions", content=body, headers={"Transfer-Encoding": "chunked"}
    )
    assert chunked.status_code == 413


def test_many_messages_and_answers_are_refused(client_of: ClientOf) -> None:
    client = client_of(max_messages=2, max_answers=3)
    assert client.chat(messages=ASK * 3).status_code == 400
    assert client.chat(n=4, temperature=1).status_code == 400
    assert client.complete(prompt=["a", "b"], n=2).status_code == 400
    for huge in (10**9, 10**30):  # refused before anything is made for each
        assert client.chat(n=huge).status_code == client.complete(n=huge).status_code == 400


def test_a_full_queue_is_a_429_and_the_others_are_answered(
    serving: Serving, slow_steps: Callable[[float], None], empty_soon: Callable[[], bool]
) -> None:
    slow_steps(0.01)
    address = serving(max_batch=1, max_queue=1)

    def ask(_: int) -> httpx.Response:
        body = {**LONG, "max_tokens": 30}
        return httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(ask, range(6)))
    answered = [one for one in found if one.status_code == 200]
    refused = [one for one in found if one.status_code == 429]
    assert len(answered) + len(refused) == 6
    assert len(answered) >= 2 and refused
    assert len({one.json()["choices"][0]["message"]["content"] for one in answered}) == 1
    assert all(int(one.headers["retry-after"]) > 0 for one in refused)
    assert error_of(refused[0])["type"] == "rate_limit_error"
    assert empty_soon()
    assert ask(0).status_code == 200


def test_an_answer_that_takes_too_long_ends(
    client_of: ClientOf, slow_steps: Callable[[float], None], empty_soon: Callable[[], bool]
) -> None:
    slow_steps(0.02)
    client = client_of(request_timeout=0.2)
    refused = client.post("/v1/chat/completions", LONG)
    assert refused.status_code == 504
    assert error_of(refused)["code"] == "request_timeout"
    assert refused.headers["x-should-retry"] == "false"
    streamed = client.post("/v1/chat/completions", {**LONG, "stream": True})
    assert streamed.status_code == 200
    assert '"code":"request_timeout"' in streamed.text and "[DONE]" not in streamed.text
    assert empty_soon()


@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_to_a_client_that_leaves_ends(
    serving: Serving,
    slow_steps: Callable[[float], None],
    empty_soon: Callable[[], bool],
    nano: ncl.Model,
    stream: bool,
) -> None:
    slow_steps(0.05)  # 20 s for the whole answer
    before = nano.scheduler.batch.counts.new_tokens
    address = serving()
    body = {**LONG, "stream": stream}
    with httpx.Client() as client, contextlib.suppress(httpx.ReadTimeout):
        asked = client.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=0.4)
        with asked as answer:  # if whole, it does not come in time
            next(answer.iter_lines())
    assert empty_soon()
    assert nano.scheduler.batch.counts.new_tokens - before < 200


def test_clients_that_leave_at_random_lose_no_page(
    serving: Serving, nano: ncl.Model, empty_soon: Callable[[], bool]
) -> None:
    address = serving(max_queue=1000)

    def leave(number: int) -> None:
        with httpx.Client(timeout=10) as client:
            body = {**LONG, "stream": True, "seed": number, "temperature": 2}
            with client.stream("POST", f"{address}/v1/chat/completions", json=body) as answer:
                for line, _ in enumerate(answer.iter_lines()):
                    if line >= number % 7:
                        break

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(leave, range(60)))
    assert empty_soon()
    batch = nano.scheduler.batch
    while len(batch.store):
        batch.store.drop_oldest()
    assert batch.pool.nbytes == 0


def test_a_body_that_arrives_byte_by_byte_is_given_up(serving: Serving) -> None:
    address = serving(body_timeout=0.3)
    port = int(address.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as slow:
        slow.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n"
        )
        slow.sendall(b"{")
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")
        while slow.recv(1000):
            pass  # until it is closed


def test_a_connection_that_says_nothing_is_closed(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuralchat_lite.server import run

    monkeypatch.setattr(run, "HEAD_SECONDS", 0.3)
    address = serving()
    port = int(address.rsplit(":", 1)[1])
    for said in (b"", b"POST /v1/chat", b"GET /health HTTP/1.1\r\nHost: x\r\n"):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as silent:
            silent.sendall(said)
            assert silent.recv(1000) == b""
    assert httpx.get(f"{address}/health").status_code == 200


def test_the_loop_answers_while_a_prompt_is_encoded(
    serving: Serving, nano: ncl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, free = threading.Event(), threading.Event()
    sequence = type(nano).sequence

    def slow(self: ncl.Model, *arguments: object) -> object:
        entered.set()
        free.wait(20)
        return sequence(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(type(nano), "sequence", slow)
    address = serving()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{address}/v1/chat/completions", json=LONG, timeout=60)
        assert entered.wait(20)
        assert httpx.get(f"{address}/health", timeout=10).status_code == 200
        free.set()
        assert answer.result().status_code == 200


def test_an_error_inside_says_and_logs_nothing_of_the_request(
    client: Client,
    nano: ncl.Model,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(self: object, prompt: object, settings: object) -> None:
        raise KeyError(f"no room for {prompt}")

    monkeypatch.setattr(type(nano), "sequence", fail)
    with caplog.at_level(logging.DEBUG, "neuralchat_lite.server"):
        for stream in (False, True):
            refused = client.chat(stream=stream)
            assert refused.status_code == 500
            assert error_of(refused)["type"] == "server_error"
            assert "calculate" not in refused.text
    assert "KeyError" in caplog.text and "in fail" in caplog.text
    assert "calculate" not in caplog.text


def test_an_error_of_a_step_ends_a_stream_with_an_event(
    client: Client, nano: ncl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("calculate")

    monkeypatch.setattr(nano.decoder, "forward_batch", fail, raising=False)
    answer = client.chat(stream=True)
    assert answer.status_code == 200
    assert '"type":"server_error"' in answer.text and "calculate" not in answer.text
    assert "[DONE]" not in answer.text


def test_a_request_is_one_line_of_the_log_without_its_text(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "neuralchat_lite.server"):
        answer = client.chat()
        client.get("/secret-path")
    first, second = [r for r in caplog.records if r.name == "neuralchat_lite.server"]
    assert first.getMessage().startswith("POST /v1/chat/completions 200 ")
    assert "prompt_tokens=21 new_tokens=24" in first.getMessage()
    assert answer.headers["x-request-id"] in first.getMessage()
    assert "secret" not in second.getMessage() and " 404 " in second.getMessage()


def test_only_the_origins_that_are_named_may_ask(client_of: ClientOf) -> None:
    client = client_of(cors_origins=("http://here",), api_keys=("k",))
    for origin, allowed in (("http://here", True), ("http://there", False)):
        asked = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        found = asyncio.run(client.request("OPTIONS", "/v1/models", headers=asked))
        assert ("access-control-allow-origin" in found.headers) == allowed
    refused = client.get("/v1/models", headers={"Origin": "http://here"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "http://here"


def test_a_stream_is_not_held_back_by_proxies(client: Client) -> None:
    answer = client.chat(stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"
    assert events(answer)


def test_ready_says_when_there_is_no_room(
    serving: Serving, slow_steps: Callable[[float], None]
) -> None:
    slow_steps(0.02)
    address = serving(max_batch=1, max_queue=1)
    body = {**LONG, "n": 2, "max_tokens": 50}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{address}/v1/chat/completions", json=body, timeout=60)
        deadline = time.monotonic() + 20
        while httpx.get(f"{address}/ready").status_code != 503 and not answer.done():
            assert time.monotonic() < deadline
        assert not answer.done()
        assert answer.result().status_code == 200
    assert httpx.get(f"{address}/ready").status_code == 200


def test_an_answer_that_arrives_during_a_step_of_nobody_is_computed(
    nano: ncl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, later = nano.scheduler.batch.step, []

    def step_and_arrival() -> bool:
        fed = step()
        if not fed and not later:
            later.append(nano.submit("calculate 1", max_new_tokens=2))
        return fed

    monkeypatch.setattr(nano.scheduler.batch, "step", step_and_arrival)
    first = nano.submit("calculate 1", max_new_tokens=400, ignore_eos=True)
    first.cancel()
    deadline = time.monotonic() + 20
    while not (later and later[0].done) and time.monotonic() < deadline and not first.done:
        time.sleep(0.01)
    monkeypatch.setattr(nano.scheduler.batch, "step", step)
    assert nano.generate("calculate 1", max_new_tokens=2).text
    assert not later or later[0].result().text


def test_a_client_that_leaves_as_its_stream_begins_leaves_nothing(
    client: Client, nano: ncl.Model, empty_soon: Callable[[], bool]
) -> None:
    desk = client.app.state.desks.of(None)

    async def send(message: object) -> None:
        raise OSError("the connection is gone")

    async def leave() -> int:
        body = {**LONG, "stream": True}
        await post_raw(client.app, "/v1/chat/completions", body, send)
        return int(desk.open)

    assert asyncio.run(leave()) == 0
    assert empty_soon()


def test_prompts_are_not_encoded_for_a_client_that_has_left(
    client: Client, nano: ncl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, begun = [], threading.Event()
    sequence = ncl.Model.sequence

    def slow(*given: Any) -> Any:
        encoded.append(given)
        begun.set()
        time.sleep(0.02)
        return sequence(*given)

    async def send(message: object) -> None:
        raise AssertionError("nobody is there to answer")

    monkeypatch.setattr(ncl.Model, "sequence", slow)
    body = {"prompt": ["a"] * 100}
    asyncio.run(post_raw(client.app, "/v1/completions", body, send, begun.is_set))
    assert 0 < len(encoded) < 90
    assert client.app.state.desks.of(None).open == 0
