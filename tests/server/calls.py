"""Requests to an application in this process, without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

ASK = [{"role": "user", "content": "calculate 100 + 520 + 60"}]


class Client:
    def __init__(self, app: Any) -> None:
        self.app = app

    async def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path, timeout=60, **more)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return asyncio.run(self.request("GET", path, **more))

    def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        if body is not None:
            more["json"] = body
        return asyncio.run(self.request("POST", path, **more))

    def chat(self, **body: Any) -> httpx.Response:
        return self.post(
            "/v1/chat/completions", {"messages": ASK, "temperature": 0, "max_tokens": 24, **body}
        )

    def complete(self, **body: Any) -> httpx.Response:
        return self.post("/v1/completions", {"prompt": "calculate 1 + 1", "temperature": 0, **body})


async def post_raw(
    app: Any,
    path: str,
    body: dict[str, Any],
    send: Callable[[Any], Awaitable[None]],
    left: Callable[[], bool] = lambda: False,
) -> None:
    """A POST as a server hands it to an application.

    send: what becomes of the parts of the answer; left: whether the client has closed
    """
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        while not left():
            await asyncio.sleep(0.005)
        return {"type": "http.disconnect"}

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    await app(scope, receive, send)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """What the events of a stream say; the last line is checked here."""
    lines = [line for line in response.text.split("\n\n") if line and not line.startswith(":")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def content(found: list[dict[str, Any]], index: int = 0) -> str:
    return "".join(
        choice["delta"].get("content") or ""
        for one in found
        for choice in one["choices"]
        if choice["index"] == index
    )


def error_of(response: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


def with_openai(client: Client, act: Callable[[Any], Any]) -> Any:
    """Run what an AsyncOpenAI is asked, against an application in this process."""
    from openai import AsyncOpenAI

    async def run() -> Any:
        transport = httpx.ASGITransport(client.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport) as http:
            made = AsyncOpenAI(base_url="http://server/v1", api_key="none", http_client=http)
            return await act(made)

    return asyncio.run(run())
