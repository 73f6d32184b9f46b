"""/v1/responses: OpenAI's newer form of a chat, without state."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from openai.types.responses import Response as Answer

from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.server.desk import desks_of
from neuralchat_lite.server.events import PING, EventStream, event
from neuralchat_lite.server.requests.options import options_of
from neuralchat_lite.server.requests.responses import ResponsesRequest
from neuralchat_lite.server.single import Single
from neuralchat_lite.server.streams import begun

router = APIRouter()


class Exchange:
    def __init__(self, request: Request, body: ResponsesRequest) -> None:
        self.body = body
        self.desk = desks_of(request).of(body.model)
        if not isinstance(body.input, str):
            self.desk.refuse_long_list(len(body.input), "input")
        self.options: GenerationOptions | None = None
        self.single = Single(request, self.desk, self.ask)
        self.id, self.item = f"resp_{uuid4().hex}", f"msg_{uuid4().hex}"
        self.created = time.time()
        self.events = 0

    def ask(self) -> tuple[list[dict[str, Any]], GenerationOptions]:
        self.options = options_of(
            self.body,
            self.desk.defaults,
            max_new_tokens=self.body.max_output_tokens or self.desk.model.decoder.context_length,
            **self.body.form(),
        )
        return self.body.messages(), self.options

    def part(self) -> dict[str, Any]:
        return {"type": "output_text", "text": self.single.text, "annotations": [], "logprobs": []}

    def message(self, status: str) -> dict[str, Any]:
        content = [] if status == "in_progress" else [self.part()]
        return {
            "id": self.item,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    @property
    def status(self) -> str:
        return "incomplete" if self.single.reason in ("length", "context") else "completed"

    def answer(self, done: bool) -> dict[str, Any]:
        """The answer as it is now, in the form of OpenAI's type; temperature and top_p are those
        that were used."""
        assert self.options is not None
        usage, status = self.single.usage, self.status if done else "in_progress"
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        made = Answer(
            id=self.id,
            created_at=self.created,
            model=self.desk.name,
            object="response",
            status=status,  # type: ignore[arg-type]
            output=[self.message(status)] if done else [],  # type: ignore[list-item]
            parallel_tool_calls=False,
            tool_choice="none",
            tools=[],
            error=None,
            incomplete_details=cut,  # type: ignore[arg-type]
            instructions=self.body.instructions,
            metadata=self.body.metadata or {},
            temperature=self.options.temperature,
            top_p=self.options.top_p,
            max_output_tokens=self.body.max_output_tokens,
            previous_response_id=None,
            store=False,  # type: ignore[call-arg]
            usage=None
            if usage is None
            else {  # type: ignore[arg-type]
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {
                    "cached_tokens": self.single.cached_tokens,
                    "cache_write_tokens": 0,
                },
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.total_tokens,
            },
        )
        return made.model_dump(mode="json", exclude_unset=True)

    def event(self, kind: str, **data: Any) -> bytes:
        number, self.events = self.events, self.events + 1
        return event({"type": kind, "sequence_number": number, **data}, kind)


@router.post("/v1/responses")
async def responses(request: Request, body: ResponsesRequest) -> Response:
    exchange = Exchange(request, body)
    if body.stream:
        parts = await begun(stream(exchange))
        return EventStream(parts, exchange.desk.settings.write_timeout, named=True)
    await exchange.single.whole()
    return JSONResponse(exchange.answer(done=True))


async def stream(exchange: Exchange) -> AsyncGenerator[bytes]:
    """Empty once the prompt is taken; then the events."""
    single, tell = exchange.single, exchange.event
    item = {"output_index": 0}
    place = {**item, "item_id": exchange.item, "content_index": 0}
    begun = False
    async with aclosing(single.pieces(exchange.desk.settings.ping_interval)) as pieces:
        async for piece in pieces:
            if not begun:
                begun = True
                yield b""
                yield tell("response.created", response=exchange.answer(done=False))
                yield tell("response.in_progress", response=exchange.answer(done=False))
                first = exchange.message("in_progress")
                yield tell("response.output_item.added", **item, item=first)
                yield tell("response.content_part.added", **place, part=exchange.part())
            elif piece is None:
                yield PING
            elif piece.text:
                yield tell("response.output_text.delta", **place, delta=piece.text, logprobs=[])
    yield tell("response.output_text.done", **place, text=single.text, logprobs=[])
    yield tell("response.content_part.done", **place, part=exchange.part())
    yield tell("response.output_item.done", **item, item=exchange.message(exchange.status))
    yield tell(f"response.{exchange.status}", response=exchange.answer(done=True))
