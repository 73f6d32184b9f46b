"""/v1/messages and /v1/messages/count_tokens: chats in Anthropic's form."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.generation.prompt import encode_prompt
from neuralchat_lite.server.desk import Desk, desks_of
from neuralchat_lite.server.events import EventStream, event
from neuralchat_lite.server.requests.messages import CountRequest, MessagesRequest
from neuralchat_lite.server.requests.options import options_of
from neuralchat_lite.server.single import Single
from neuralchat_lite.server.streams import begun

router = APIRouter()
REASONS = {"eos": "end_turn", "length": "max_tokens", "context": "max_tokens"}


@router.post("/v1/messages")
async def messages(request: Request, body: MessagesRequest) -> Response:
    desk = desks_of(request).of(body.model)
    desk.refuse_long_list(len(body.messages), "messages")

    def ask() -> tuple[list[dict[str, Any]], GenerationOptions]:
        prompt, prefill = body.prompt()
        return prompt, options_of(
            body,
            desk.defaults,
            max_new_tokens=body.max_tokens,
            stop=body.stop_sequences,
            prefill=prefill or None,
        )

    single = Single(request, desk, ask)
    if body.stream:
        parts = await begun(stream(single, body))
        return EventStream(parts, desk.settings.write_timeout, named=True)
    await single.whole()
    reason, sequence = ending(single, body.stop_sequences or ())
    return JSONResponse(
        {
            **head(desk),
            "content": [{"type": "text", "text": single.text}],
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": usage(single),
        }
    )


@router.post("/v1/messages/count_tokens")
async def count_tokens(request: Request, body: CountRequest) -> JSONResponse:
    desk = desks_of(request).of(body.model)
    desk.refuse_long_list(len(body.messages), "messages")
    model = desk.model

    def count() -> int:
        prompt, prefill = body.prompt()
        options = GenerationOptions(prefill=prefill)
        size = model.architecture.vocab_size
        return len(encode_prompt(prompt, model.tokenizer, size, None, options).ids)

    return JSONResponse({"input_tokens": await desk.in_thread(count)})


def head(desk: Desk) -> dict[str, Any]:
    return {
        "id": f"msg_{uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": desk.name,
    }


def usage(single: Single) -> dict[str, int]:
    """As there, tokens that were remembered are counted apart."""
    assert single.usage is not None
    return {
        "input_tokens": single.usage.prompt_tokens - single.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": single.cached_tokens,
        "output_tokens": single.usage.completion_tokens,
    }


def ending(single: Single, stops: Sequence[str]) -> tuple[str, str | None]:
    """(why it ended, the text that ended it)"""
    if single.reason != "stop":
        return REASONS[str(single.reason)], None
    # The text that was found is no part of the answer, but its tokens are.
    said = single.desk.model.tokenizer.decode(
        single.token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    found = [stop for stop in stops if stop in said]
    if not found:
        return "end_turn", None  # a stop text of the chat template
    return "stop_sequence", min(found, key=said.find)


async def stream(single: Single, body: MessagesRequest) -> AsyncGenerator[bytes]:
    """Empty once the prompt is taken; then the events."""
    begun = False
    async with aclosing(single.pieces(single.desk.settings.ping_interval)) as pieces:
        async for piece in pieces:
            if not begun:
                begun = True
                yield b""
                first = {"input_tokens": single.prompt_tokens, "output_tokens": 0}
                message = {
                    **head(single.desk),
                    "content": [],
                    "stop_reason": None,
                    "stop_sequence": None,
                    "usage": first,
                }
                yield named("message_start", message=message)
                empty = {"type": "text", "text": ""}
                yield named("content_block_start", index=0, content_block=empty)
            elif piece is None:
                yield named("ping")
            elif piece.text:
                delta = {"type": "text_delta", "text": piece.text}
                yield named("content_block_delta", index=0, delta=delta)
    yield named("content_block_stop", index=0)
    reason, sequence = ending(single, body.stop_sequences or ())
    end = {"stop_reason": reason, "stop_sequence": sequence}
    yield named("message_delta", delta=end, usage=usage(single))
    yield named("message_stop")


def named(kind: str, **data: Any) -> bytes:
    return event({"type": kind, **data}, kind)
