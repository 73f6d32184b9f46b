"""A request for one or several answers in OpenAI's older forms, and how they are sent."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any
from uuid import uuid4

from fastapi import Request
from fastapi.responses import Response

from neuralchat_lite.generation.sequence import Piece
from neuralchat_lite.server.answers import Sum
from neuralchat_lite.server.desk import Answers, Asked, Desk
from neuralchat_lite.server.events import EventStream, as_json
from neuralchat_lite.server.streams import begun


class Exchange:
    """n: answers to each prompt; answer i of prompt p is choice p * n + i
    head: what the answer and each of its parts begin with
    """

    def __init__(
        self, request: Request, body: Any, desk: Desk, prompts: int, prefix: str, kind: str
    ) -> None:
        """prefix: of the answer's id; kind: its `object`"""
        self.request, self.body, self.desk = request, body, desk
        self.n = body.n or 1
        self.answers = prompts * self.n
        desk.refuse_too_many(self.answers)  # before anything is made for each
        self.sum = Sum(self.n)
        self.head: dict[str, Any] = {
            "id": f"{prefix}-{uuid4().hex}",
            "created": int(time.time()),
            "model": desk.name,
            "object": kind,
        }

    def asked(self) -> list[Asked]:
        raise NotImplementedError

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[Answers]:
        async with self.desk.answering(self.request, self.asked, self.answers) as answers:
            await self.look_at_prompts(answers)
            yield answers

    async def look_at_prompts(self, answers: Answers) -> None:
        """While the answers are on their way."""

    def cost(self) -> dict[str, Any]:
        """What all answers took, once they have ended; the log has it too."""
        usage = self.sum.note(self.request, self.desk.name)
        return {"usage": usage, "timings": self.sum.timings()}

    async def whole(self, choice: Callable[[Answers, int, list[Piece]], Any]) -> dict[str, Any]:
        """The fields of the whole answer. choice: of which answer, from its pieces"""
        kept: list[list[Piece]] = [[] for _ in range(self.answers)]
        async with self.answering() as answers, aclosing(answers.pieces()) as pieces:
            async for found in pieces:
                assert found is not None, "there is no clock"
                index, piece = found
                kept[index].append(piece)
                self.sum.add(index, piece)
            choices = [choice(answers, index, all_of_it) for index, all_of_it in enumerate(kept)]
        return {**self.head, "choices": choices, **self.cost()}

    async def respond(
        self, stream: Callable[[Any], AsyncGenerator[bytes]], whole: Callable[[Any], Any]
    ) -> Response:
        """By `stream` if the request asks for events, else by `whole`; both get the exchange."""
        if self.body.stream:
            return EventStream(await begun(stream(self)), self.desk.settings.write_timeout)
        return Response(as_json(await whole(self)), media_type="application/json")
