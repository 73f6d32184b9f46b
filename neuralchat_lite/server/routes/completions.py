"""/v1/completions: texts or token ids, continued as they are."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from neuralchat_lite.generation.score import Score
from neuralchat_lite.generation.sequence import Piece
from neuralchat_lite.server.answers import finish_reason, text_logprobs
from neuralchat_lite.server.desk import Answers, Asked, desks_of
from neuralchat_lite.server.events import DONE, PING, event
from neuralchat_lite.server.exchange import Exchange
from neuralchat_lite.server.requests.completions import CompletionRequest
from neuralchat_lite.server.requests.options import of_each_answer, options_of

router = APIRouter()


class Texts(Exchange):
    def __init__(self, request: Request, body: CompletionRequest) -> None:
        self.prompts = body.prompts()
        desk = desks_of(request).of(body.model)
        super().__init__(request, body, desk, len(self.prompts), "cmpl", "text_completion")

        self.scores: list[Score] = []  # of the prompts, if the texts begin with them

    async def look_at_prompts(self, answers: Answers) -> None:
        if self.body.echo and self.body.logprobs is not None:
            model, most = self.desk.model, self.body.logprobs
            ids = [list(handle.prompt_ids) for handle in answers.handles[:: self.n]]
            self.scores = await self.desk.read(self.request, lambda: model.score(ids, most))

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


@router.post("/v1/completions")
async def completions(request: Request, body: CompletionRequest) -> Response:
    return await Texts(request, body).respond(stream, whole)


async def whole(exchange: Texts) -> dict[str, Any]:
    """Not by way of OpenAI's own types, which know neither that a part of a stream has no reason
    yet nor that a prompt's first token has no log-probability."""
    return with_plain_usage(await exchange.whole(partial(choice, exchange)))


def choice(
    exchange: Texts,
    answers: Answers,
    index: int,
    pieces: list[Piece],
    offset: int | None = None,
) -> dict[str, Any]:
    """offset: characters of the answer before these pieces; None: they are its first"""
    known = None
    if pieces[0].logprob is not None:
        score = exchange.scores[index // exchange.n] if exchange.scores and offset is None else None
        known = text_logprobs(answers, pieces, offset or 0, score)
    return {
        "text": "".join(piece.text for piece in pieces),
        "index": index,
        "finish_reason": finish_reason(pieces[-1]),
        "logprobs": known,
    }


async def stream(exchange: Texts) -> AsyncGenerator[bytes]:
    """Empty once the prompts are taken; then the parts."""
    ping = exchange.desk.settings.ping_interval
    offsets: list[int | None] = [None] * exchange.answers
    async with exchange.answering() as answers:
        yield b""
        async with aclosing(answers.pieces(ping)) as pieces:
            async for found in pieces:
                if found is None:
                    yield PING
                    continue
                index, piece = found
                offset = offsets[index]
                exchange.sum.add(index, piece)
                if piece.text or piece.logprob is not None or piece.finish_reason is not None:
                    yield part(exchange, [choice(exchange, answers, index, [piece], offset)])
                offsets[index] = (offset or 0) + len(piece.text)
    cost = with_plain_usage(exchange.cost())
    if exchange.body.with_usage:
        yield part(exchange, [], **cost)
    yield DONE


def with_plain_usage(found: dict[str, Any]) -> dict[str, Any]:
    return {**found, "usage": found["usage"].model_dump(exclude_unset=True)}


def part(exchange: Texts, choices: list[dict[str, Any]], **more: Any) -> bytes:
    if exchange.body.with_usage and "usage" not in more:
        more["usage"] = None
    return event({**exchange.head, "choices": choices, **more})
