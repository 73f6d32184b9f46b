"""/v1/messages and /v1/messages/count_tokens: chats in Anthropic's form."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.generation.prompt import encode_prompt
from neuralchat_lite.server.blocks import Block, Part
from neuralchat_lite.server.calling import refuse_lost_calls
from neuralchat_lite.server.desk import Desk, desks_of
from neuralchat_lite.server.events import EventStream, event
from neuralchat_lite.server.requests.messages import CountRequest, MessagesRequest
from neuralchat_lite.server.requests.options import options_of
from neuralchat_lite.server.routes.texts import refuse_long_text
from neuralchat_lite.server.single import Single
from neuralchat_lite.server.streams import begun

router = APIRouter()
REASONS = {"eos": "end_turn", "length": "max_tokens", "context": "max_tokens"}


@router.post("/v1/messages")
async def messages(request: Request, body: MessagesRequest) -> Response:
    desk = desks_of(request).of(body.model)
    desk.refuse_long_list(len(body.messages), "messages")
    calling, tokenizer = body.calling(), desk.model.tokenizer

    def ask() -> tuple[list[dict[str, Any]], GenerationOptions]:
        prompt, prefill = body.prompt()
        variables = calling.variables(tokenizer)
        refuse_lost_calls(tokenizer, prompt, variables)
        return prompt, options_of(
            body,
            desk.defaults,
            max_new_tokens=body.max_tokens,
            stop=body.stop_sequences,
            prefill=prefill or None,
            chat_template_kwargs=variables,
            **calling.form(tokenizer),
        )

    single = Single(request, desk, ask, calling)
    if body.stream:
        parts = await begun(stream(single, body))
        return EventStream(parts, desk.settings.write_timeout, named=True)
    await single.whole()
    reason, sequence = ending(single, body.stop_sequences or ())
    return JSONResponse(
        {
            **head(desk),
            "content": [CONTENTS[block.kind](block) for block in single.blocks],
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": usage(single),
        }
    )


@router.post("/v1/messages/count_tokens")
async def count_tokens(request: Request, body: CountRequest) -> JSONResponse:
    desk = desks_of(request).of(body.model)
    desk.refuse_long_list(len(body.messages), "messages")
    model, calling = desk.model, body.calling()

    def count() -> int:
        prompt, prefill = body.prompt()
        refuse_long_text(f"{prompt}{prefill}")
        options = GenerationOptions(
            prefill=prefill, chat_template_kwargs=calling.variables(model.tokenizer)
        )
        size = model.architecture.vocab_size
        return len(encode_prompt(prompt, model.tokenizer, size, None, options).ids)

    return JSONResponse({"input_tokens": await desk.in_thread(count)})


def of_text(block: Block) -> dict[str, Any]:
    return {"type": "text", "text": block.text}


def of_reasoning(block: Block) -> dict[str, Any]:
    """Nothing is signed, and clients look for a signature."""
    return {"type": "thinking", "thinking": block.text, "signature": ""}


def of_call(block: Block) -> dict[str, Any]:
    assert block.call is not None
    return {
        "type": "tool_use",
        "id": block.call.id,
        "name": block.call.name,
        "input": json.loads(block.text),
    }


CONTENTS = {"text": of_text, "reasoning": of_reasoning, "call": of_call}
# kind of block -> (what it is before its first part, type of its parts, their field)
STREAMED: dict[str, tuple[dict[str, Any], str, str]] = {
    "text": ({"text": ""}, "text_delta", "text"),
    "reasoning": ({"thinking": "", "signature": ""}, "thinking_delta", "thinking"),
    "call": ({"input": {}}, "input_json_delta", "partial_json"),
}


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
        return ("tool_use" if single.called else REASONS[str(single.reason)]), None
    # The text that was found is no part of the answer, but its tokens are.
    said = single.desk.model.tokenizer.decode(
        single.token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    found = [stop for stop in stops if stop in said]
    if not found:
        # a stop text of the chat template, or the end of a form
        return ("tool_use" if single.called else "end_turn"), None
    return "stop_sequence", min(found, key=said.find)


async def stream(single: Single, body: MessagesRequest) -> AsyncGenerator[bytes]:
    """Empty once the prompt is taken; then the events."""
    begun = False
    async with aclosing(single.parts(single.desk.settings.ping_interval)) as parts:
        async for part in parts:
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
            elif part is None:
                yield named("ping")
            else:
                if part.opened and part.index:
                    yield named("content_block_stop", index=part.index - 1)
                for one in of_part(part):
                    yield one
    yield named("content_block_stop", index=len(single.blocks) - 1)
    reason, sequence = ending(single, body.stop_sequences or ())
    end = {"stop_reason": reason, "stop_sequence": sequence}
    yield named("message_delta", delta=end, usage=usage(single))
    yield named("message_stop")


def of_part(part: Part) -> Iterator[bytes]:
    empty, kind, field = STREAMED[part.block.kind]
    if part.opened:
        block = {**CONTENTS[part.block.kind](part.block), **empty}
        yield named("content_block_start", index=part.index, content_block=block)
    if part.text:
        yield named("content_block_delta", index=part.index, delta={"type": kind, field: part.text})


def named(kind: str, **data: Any) -> bytes:
    return event({"type": kind, **data}, kind)
