"""/v1/chat/completions: messages in, the assistant's next one out, whole or as it comes."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import Response
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion import ChoiceLogprobs as WholeLogprobs
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import ChoiceDelta, ChoiceLogprobs

from neuralchat_lite.generation.sequence import Piece
from neuralchat_lite.server.answers import Sum, chat_logprobs, finish_reason, note_tokens
from neuralchat_lite.server.desk import Answers, Asked, Desk, desks_of
from neuralchat_lite.server.events import DONE, PING, EventStream, event
from neuralchat_lite.server.requests.chat import ChatRequest
from neuralchat_lite.server.requests.options import of_each_answer, options_of
from neuralchat_lite.server.streams import begun

router = APIRouter()


class Exchange:
    """One request and what is needed to answer it."""

    def __init__(self, request: Request, body: ChatRequest) -> None:
        self.request, self.body = request, body
        self.desk: Desk = desks_of(request).of(body.model)
        self.desk.refuse_long_list(len(body.messages), "messages")
        self.n = body.n or 1
        self.sum = Sum(self.n)
        self.head: dict[str, Any] = {
            "id": f"chatcmpl-{uuid4().hex}",
            "created": int(time.time()),
            "model": self.desk.name,
        }

    def asked(self) -> list[Asked]:
        messages, prefill = self.body.prompt()
        options = options_of(
            self.body,
            self.desk.defaults,
            max_new_tokens=self.body.limit() or self.desk.model.decoder.context_length,
            logprobs=self.body.logprobs,
            top_logprobs=self.body.top_logprobs,
            chat_template_kwargs=self.body.chat_template_kwargs,
            prefill=prefill or None,
        )
        return [(messages, one) for one in of_each_answer(options, self.n)]

    def answering(self) -> Any:
        return self.desk.answering(self.request, self.asked, self.n)


@router.post("/v1/chat/completions")
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    exchange = Exchange(request, body)
    if body.stream:
        parts = await begun(stream(exchange))
        return EventStream(parts, desks_of(request).settings.write_timeout)
    answer = await whole(exchange)
    return Response(answer.model_dump_json(exclude_unset=True), media_type="application/json")


async def whole(exchange: Exchange) -> ChatCompletion:
    kept: list[list[Piece]] = [[] for _ in range(exchange.n)]
    async with exchange.answering() as answers, aclosing(answers.pieces()) as pieces:
        async for index, piece in pieces:
            kept[index].append(piece)
            exchange.sum.add(index, piece)
        choices = [choice(answers, index, kept[index]) for index in range(exchange.n)]
    usage = exchange.sum.usage()
    note_tokens(exchange.request, usage)
    return ChatCompletion(
        **exchange.head,
        object="chat.completion",
        choices=choices,
        usage=usage,
        timings=exchange.sum.timings(),  # type: ignore[call-arg]  # beyond OpenAI's
    )


def choice(answers: Answers, index: int, pieces: list[Piece]) -> Choice:
    known = None
    if pieces[0].logprob is not None:
        known = WholeLogprobs(content=chat_logprobs(answers, pieces), refusal=None)
    text = "".join(piece.text for piece in pieces)
    return Choice(
        index=index,
        message=ChatCompletionMessage(role="assistant", content=text, refusal=None),
        finish_reason=finish_reason(pieces[-1]),
        logprobs=known,
    )


async def stream(exchange: Exchange) -> AsyncGenerator[bytes]:
    """Empty once the prompt is taken; then the parts."""
    ping = exchange.desk.settings.ping_interval
    async with exchange.answering() as answers:
        yield b""
        for index in range(exchange.n):
            yield chunk(exchange, index, ChoiceDelta(role="assistant", content=None))
        async with aclosing(answers.pieces(ping)) as pieces:
            async for found in pieces:
                if found is None:
                    yield PING
                    continue
                index, piece = found
                exchange.sum.add(index, piece)
                known = None
                if piece.logprob is not None:
                    known = ChoiceLogprobs(content=chat_logprobs(answers, [piece]), refusal=None)
                if piece.text or (known is not None and known.content):
                    yield chunk(exchange, index, ChoiceDelta(content=piece.text), known)
                if (reason := finish_reason(piece)) is not None:
                    yield chunk(exchange, index, ChoiceDelta(), reason=reason)
    usage = exchange.sum.usage()
    note_tokens(exchange.request, usage)
    if exchange.body.with_usage:
        yield event(
            ChatCompletionChunk(
                **exchange.head,
                object="chat.completion.chunk",
                choices=[],
                usage=usage,
                timings=exchange.sum.timings(),  # type: ignore[call-arg]
            )
        )
    yield DONE


def chunk(
    exchange: Exchange,
    index: int,
    delta: ChoiceDelta,
    logprobs: ChoiceLogprobs | None = None,
    reason: Any = None,
) -> bytes:
    one = ChunkChoice(index=index, delta=delta, finish_reason=reason, logprobs=logprobs)
    more: dict[str, Any] = {"usage": None} if exchange.body.with_usage else {}
    return event(
        ChatCompletionChunk(**exchange.head, object="chat.completion.chunk", choices=[one], **more)
    )
