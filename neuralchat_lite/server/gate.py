"""The way in: names, keys, the size and time of bodies, and one line of the log a request.

A plain ASGI wrapper around the whole application, so that nothing behind it sees a request that it
refuses, and no error leaves it unanswered.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neuralchat_lite.server.cost import Cost
from neuralchat_lite.server.desk import ClientGone
from neuralchat_lite.server.errors import (
    RequestError,
    as_request_error,
    log,
    response_for,
)
from neuralchat_lite.server.hosts import check_host
from neuralchat_lite.server.settings import Settings

# What everybody may see: whether the server lives, and the page, which asks for the key itself.
OPEN_PATHS = ("/health", "/ready", "/")
OPEN_FOLDER = "/page/"
CLOSE = {"Connection": "close"}
CLIENT_GONE = 499  # as nginx logs it


class Gate:
    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings
        self.digests = [digest(key.encode()) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})
        visit = Visit(scope, receive, send, self.settings)
        try:
            self.check_host(scope)
            self.check_key(scope)
            await visit.read_body()
            await self.app(scope, visit.receive, visit.send)
        except ClientGone:
            scope["state"]["gone"] = True
        except Exception as error:
            await visit.answer(error)
        finally:
            visit.log()

    def check_host(self, scope: Scope) -> None:
        if self.settings.allowed_hosts is not None and not self.digests:
            host = dict(scope["headers"]).get(b"host", b"")
            check_host(host, self.settings.allowed_hosts)

    def check_key(self, scope: Scope) -> None:
        path = scope["path"]
        if not self.digests or path in OPEN_PATHS or path.startswith(OPEN_FOLDER):
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-api-key", b"")
        if not given:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            given = given.strip() if kind.lower() == b"bearer" else b""
        found = digest(given)
        # All keys are compared, each in constant time, so that time says nothing of them.
        right = [hmac.compare_digest(found, known) for known in self.digests]
        if not any(right):
            raise RequestError(
                401,
                "the API key is missing or wrong: send it as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def digest(key: bytes) -> bytes:
    """Of one length for all keys."""
    return hashlib.sha256(key).digest()


class Visit:
    """One request on its way in, and its answer on the way out."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: Settings) -> None:
        self.scope, self._receive, self._send, self.settings = scope, receive, send, settings
        self.id = uuid4().hex
        self.began = time.monotonic()
        self.deadline = self.began + settings.body_timeout
        self.body: bytes | None = None
        self.status = 0

    async def read_body(self) -> None:
        """All of it, before the application is called. Raises RequestError for one that is too
        large or too slow, ClientGone when its client leaves."""
        given = dict(self.scope["headers"]).get(b"content-length", b"0")
        if given.isdigit() and int(given[:20]) > self.settings.max_body_bytes:
            raise self.too_large()
        body, more = bytearray(), True
        while more:
            try:
                left = max(0.001, self.deadline - time.monotonic())
                message = await asyncio.wait_for(self._receive(), left)
            except asyncio.TimeoutError:
                raise RequestError(
                    408,
                    f"the body did not arrive within {self.settings.body_timeout:g} s: "
                    "send it faster",
                    headers=CLOSE,
                ) from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            body += message.get("body", b"")
            if len(body) > self.settings.max_body_bytes:
                raise self.too_large()
            more = message.get("more_body", False)
        self.body = bytes(body)

    def too_large(self) -> RequestError:
        most = self.settings.max_body_bytes
        return RequestError(413, f"the body is larger than {most} bytes: send less", headers=CLOSE)

    async def receive(self) -> Message:
        """The body in one part, then whatever comes: that the client has gone."""
        if self.body is None:
            return await self._receive()
        message = {"type": "http.request", "body": self.body, "more_body": False}
        self.body = None
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message["headers"], *self.headers()]}
        await self._send(message)

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"x-request-id", self.id.encode()), (b"x-content-type-options", b"nosniff")]

    async def answer(self, error: Exception) -> None:
        found = as_request_error(error)
        if self.status:
            return  # half of an answer has been sent; the connection breaks
        response: Callable[..., Any] = response_for(self.scope["path"], found)
        await response(self.scope, self._receive, self.send)

    def log(self) -> None:
        """One line: no text of the request but its method and the route that it has taken."""
        state = self.scope["state"]
        route = self.scope.get("route")
        path = getattr(route, "path", None) or "(no route)"
        status = CLIENT_GONE if state.get("gone") else self.status
        spent = (time.monotonic() - self.began) * 1000
        cost: Cost | None = state.get("cost")
        log.info(
            "%s %s %s %.1f ms%s id=%s",
            self.scope["method"],
            path,
            status,
            spent,
            cost.line() if cost else "",
            self.id,
        )
