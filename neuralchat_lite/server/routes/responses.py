"""/v1/responses: OpenAI's newer form of a chat, without state."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from openai.types.responses import Response as Answer

from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.server.blocks import Block, Part
from neuralchat_lite.server.calling import refuse_lost_calls
from neuralchat_lite.server.desk import desks_of
from neuralchat_lite.server.events import PING, EventStream, event
from neuralchat_lite.server.requests.options import options_of
from neuralchat_lite.server.requests.responses import ResponsesRequest
from neuralchat_lite.server.routes.items import ITEMS, item_of
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
        self.calling, form = body.calling(), body.form()
        self.single = Single(request, self.desk, self.ask, self.calling, formed=bool(form))
        self.id = f"resp_{uuid4().hex}"
        self.created = time.time()
        self.events = 0

    def ask(self) -> tuple[list[dict[str, Any]], GenerationOptions]:
        tokenizer, messages = self.desk.model.tokenizer, self.body.messages()
        variables = self.calling.variables(tokenizer)
        refuse_lost_calls(tokenizer, messages, variables)
        self.options = options_of(
            self.body,
            self.desk.defaults,
            max_new_tokens=self.body.max_output_tokens or self.desk.model.decoder.context_length,
            chat_template_kwargs=variables,
            **self.calling.form(tokenizer, self.body.form()),
        )
        return messages, self.options

    @property
    def status(self) -> str:
        return "incomplete" if self.single.reason in ("length", "context") else "completed"

    def item(self, index: int, status: str) -> dict[str, Any]:
        return item_of(self.single.blocks[index], self.id, index, status)

    def items(self) -> list[dict[str, Any]]:
        """The last one is cut where the answer is, unless it is a call, which came whole."""
        blocks = self.single.blocks
        last = "completed" if blocks[-1].kind == "call" else self.status
        ends = ["completed"] * (len(blocks) - 1) + [last]
        return [self.item(index, status) for index, status in enumerate(ends)]

    def answer(self, done: bool) -> dict[str, Any]:
        """The answer as it is now, in the form of OpenAI's type; temperature and top_p are those
        that were used."""
        assert self.options is not None
        usage, status = self.single.usage, self.status if done else "in_progress"
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        choice = self.body.tool_choice
        made = Answer(
            id=self.id,
            created_at=self.created,
            model=self.desk.name,
            object="response",
            status=status,  # type: ignore[arg-type]
            output=self.items() if done else [],  # type: ignore[arg-type]
            parallel_tool_calls=self.calling.many,
            tool_choice="auto" if choice is None else self.body.model_dump()["tool_choice"],
            tools=[tool.model_dump() for tool in self.body.tools or ()],  # type: ignore[misc]
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
                "output_tokens_details": {"reasoning_tokens": self.single.reasoning_tokens},
                "total_tokens": usage.total_tokens,
            },
        )
        return made.model_dump(mode="json", exclude_unset=True)

    def event(self, kind: str, **data: Any) -> bytes:
        number, self.events = self.events, self.events + 1
        name = f"response.{kind}"
        return event({"type": name, "sequence_number": number, **data}, name)


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
    told = False
    async with aclosing(single.parts(exchange.desk.settings.ping_interval)) as parts:
        async for part in parts:
            if not told:
                told = True
                yield b""
                yield tell("created", response=exchange.answer(done=False))
                yield tell("in_progress", response=exchange.answer(done=False))
            elif part is None:
                yield PING
            else:
                for one in of_part(exchange, part):
                    yield one
    last = exchange.items()[-1]
    for one in ended(exchange, single.blocks[-1], len(single.blocks) - 1, last):
        yield one
    yield tell(exchange.status, response=exchange.answer(done=True))


def of_part(exchange: Exchange, part: Part) -> Iterator[bytes]:
    tell, index = exchange.event, part.index
    kind = ITEMS[part.block.kind]
    place = {"output_index": index, "item_id": exchange.item(index, "in_progress")["id"]}
    if part.opened:
        if index:
            before = exchange.item(index - 1, "completed")
            yield from ended(exchange, exchange.single.blocks[index - 1], index - 1, before)
        first = kind.empty(exchange.item(index, "in_progress"))
        yield tell("output_item.added", output_index=index, item=first)
        if kind.part is not None:
            yield tell("content_part.added", **place, content_index=0, part=kind.part(""))
    if part.text:
        yield tell(f"{kind.event}.delta", **place, **kind.more, delta=part.text)


def ended(exchange: Exchange, block: Block, index: int, item: dict[str, Any]) -> Iterator[bytes]:
    tell, kind = exchange.event, ITEMS[block.kind]
    place = {"output_index": index, "item_id": item["id"]}
    yield tell(f"{kind.event}.done", **place, **kind.more, **{kind.whole: block.text})
    if kind.part is not None:
        yield tell("content_part.done", **place, content_index=0, part=kind.part(block.text))
    yield tell("output_item.done", output_index=index, item=item)
