"""/v1/completions: texts or token ids, continued as they are."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from openai.types import Completion

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


async def whole(exchange: Texts) -> Completion:
    return Completion(**await exchange.whole(choice))


def choice(answers: Answers, index: int, pieces: list[Piece], offset: int = 0) -> dict[str, Any]:
    known = None
    if pieces[0].logprob is not None:
        known = text_logprobs(answers, pieces, offset).model_dump()
    return {
        "text": "".join(piece.text for piece in pieces),
        "index": index,
        "finish_reason": finish_reason(pieces[-1]),
        "logprobs": known,
    }


async def stream(exchange: Texts) -> AsyncGenerator[bytes]:
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
    cost = exchange.cost()
    if exchange.body.with_usage:
        cost["usage"] = cost["usage"].model_dump(exclude_unset=True)
        yield part(exchange, [], **cost)
    yield DONE


def part(exchange: Texts, choices: list[dict[str, Any]], **more: Any) -> bytes:
    """Not by way of OpenAI's own type, which does not know that a part has no reason yet."""
    if exchange.body.with_usage and "usage" not in more:
        more["usage"] = None
    return event({**exchange.head, "choices": choices, **more})
