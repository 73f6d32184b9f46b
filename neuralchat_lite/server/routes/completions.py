"""/v1/completions: texts or token ids, continued as they are."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import Response
from openai.types import Completion, CompletionChoice

from neuralchat_lite.generation.sequence import Piece
from neuralchat_lite.server.answers import Sum, finish_reason, note_tokens, text_logprobs
from neuralchat_lite.server.desk import Answers, Asked, Desk, desks_of
from neuralchat_lite.server.events import DONE, PING, EventStream, event
from neuralchat_lite.server.requests.completions import CompletionRequest
from neuralchat_lite.server.requests.options import of_each_answer, options_of
from neuralchat_lite.server.streams import begun

router = APIRouter()


class Exchange:
    """One request and what is needed to answer it. Answer i of prompt p is choice p * n + i."""

    def __init__(self, request: Request, body: CompletionRequest) -> None:
        self.request, self.body = request, body
        self.desk: Desk = desks_of(request).of(body.model)
        self.n = body.n or 1
        self.prompts = body.prompts()
        self.answers = len(self.prompts) * self.n
        self.desk.refuse_too_many(self.answers)  # before anything is made for each
        self.sum = Sum(self.n)
        self.head: dict[str, Any] = {
            "id": f"cmpl-{uuid4().hex}",
            "created": int(time.time()),
            "model": self.desk.name,
            "object": "text_completion",
        }

    def asked(self) -> list[Asked]:
        options = options_of(
            self.body,
            self.desk.defaults,
            max_new_tokens=self.body.max_tokens or self.desk.model.decoder.context_length,
            logprobs=None if self.body.logprobs is None else True,
            top_logprobs=self.body.logprobs,
            echo=self.body.echo,
            **self.body.form(),
        )
        answers = of_each_answer(options, self.n)
        return [(prompt, one) for prompt in self.prompts for one in answers]

    def answering(self) -> Any:
        return self.desk.answering(self.request, self.asked, self.answers)


@router.post("/v1/completions")
async def completions(request: Request, body: CompletionRequest) -> Response:
    exchange = Exchange(request, body)
    if body.stream:
        parts = await begun(stream(exchange))
        return EventStream(parts, desks_of(request).settings.write_timeout)
    answer = await whole(exchange)
    return Response(answer.model_dump_json(exclude_unset=True), media_type="application/json")


async def whole(exchange: Exchange) -> Completion:
    kept: list[list[Piece]] = [[] for _ in range(exchange.answers)]
    async with exchange.answering() as answers, aclosing(answers.pieces()) as pieces:
        async for index, piece in pieces:
            kept[index].append(piece)
            exchange.sum.add(index, piece)
        choices = [choice(answers, index, found) for index, found in enumerate(kept)]
    usage = exchange.sum.usage()
    note_tokens(exchange.request, usage)
    return Completion(
        **exchange.head,
        choices=choices,
        usage=usage,
        timings=exchange.sum.timings(),  # type: ignore[call-arg]  # beyond OpenAI's
    )


def choice(
    answers: Answers, index: int, pieces: list[Piece], offset: int = 0, reason: Any = ...
) -> CompletionChoice:
    known = None
    if pieces and pieces[0].logprob is not None:
        known = text_logprobs(answers, pieces, offset)
    # A part of a stream has no reason yet, which OpenAI's own type does not know.
    return CompletionChoice.model_construct(
        text="".join(piece.text for piece in pieces),
        index=index,
        finish_reason=finish_reason(pieces[-1]) if reason is ... else reason,
        logprobs=known,
    )


async def stream(exchange: Exchange) -> AsyncGenerator[bytes]:
    """Empty once the prompts are taken; then the parts."""
    ping = exchange.desk.settings.ping_interval
    offsets = [0] * exchange.answers
    async with exchange.answering() as answers:
        yield b""
        async with aclosing(answers.pieces(ping)) as pieces:
            async for found in pieces:
                if found is None:
                    yield PING
                    continue
                index, piece = found
                exchange.sum.add(index, piece)
                if piece.text or piece.logprob is not None or piece.finish_reason is not None:
                    yield part(exchange, [choice(answers, index, [piece], offsets[index])])
                offsets[index] += len(piece.text)
    usage = exchange.sum.usage()
    note_tokens(exchange.request, usage)
    if exchange.body.with_usage:
        yield part(exchange, [], usage=usage, timings=exchange.sum.timings())
    yield DONE


def part(exchange: Exchange, choices: list[CompletionChoice], **more: Any) -> bytes:
    if exchange.body.with_usage and "usage" not in more:
        more["usage"] = None
    return event(Completion.model_construct(**exchange.head, choices=choices, **more))
