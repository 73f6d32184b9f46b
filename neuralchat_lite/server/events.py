"""Server-sent events: one `data:` line each, and comments as signs of life."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import anyio
from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from neuralchat_lite.server.desk import ClientGone
from neuralchat_lite.server.errors import as_request_error, body_for

PING = b": still computing\n\n"
DONE = b"data: [DONE]\n\n"
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would collect the parts
}


def event(data: BaseModel | dict[str, Any], name: str | None = None) -> bytes:
    """name: of the event, where the form has names"""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {as_json(data)}\n\n".encode()


def as_json(data: BaseModel | dict[str, Any]) -> str:
    """In one line."""
    if isinstance(data, BaseModel):
        return data.model_dump_json(exclude_unset=True)
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


class EventStream(Response):
    """Parts are sent as they come, to a client that takes each within a time.

    An error after the first part becomes an event, since the status has been sent. The generator is
    closed in any case, which ends what it computes.
    """

    def __init__(self, parts: AsyncGenerator[bytes], write_timeout: float, named: bool = False):
        """named: whether an error is an event with a name"""
        self.parts, self.write_timeout, self.named = parts, write_timeout, named
        self.status_code, self.background = 200, None
        self.body = b""
        self.init_headers(HEADERS)

    def init_headers(self, headers: Any = None) -> None:
        self.raw_headers = [
            (name.lower().encode(), value.encode()) for name, value in (headers or {}).items()
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}

        loop, gone = asyncio.get_running_loop(), False
        # One scope for all writes: to make one costs more than the rest of a write.
        limit = anyio.CancelScope()

        async def write(part: bytes, more: bool = True) -> None:
            limit.deadline = loop.time() + self.write_timeout
            await send({"type": "http.response.body", "body": part, "more_body": more})
            limit.deadline = math.inf

        async with aclosing(self.parts) as parts:
            with limit:
                await send(start)
                try:
                    async for part in parts:
                        await write(part)
                    await write(b"", more=False)
                except (ClientGone, OSError):
                    gone = True
                except Exception as error:
                    said = body_for(scope["path"], as_request_error(error))
                    await write(event(said, "error" if self.named else None))
                    await write(b"", more=False)
        if gone or limit.cancelled_caught:
            scope.setdefault("state", {})["gone"] = True
