"""One answer to messages, for the forms that know one alone."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from fastapi import Request
from openai.types import CompletionUsage

from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.generation.sequence import FinishReason, Piece
from neuralchat_lite.server.answers import Sum, note_tokens
from neuralchat_lite.server.desk import Desk


class Single:
    """usage, reason, text, token_ids: there when the pieces have ended"""

    def __init__(
        self,
        request: Request,
        desk: Desk,
        ask: Callable[[], tuple[list[dict[str, Any]], GenerationOptions]],
    ) -> None:
        """ask: called in a thread, gives the messages and how to answer them"""
        self.request, self.desk, self.ask = request, desk, ask
        self.prompt_tokens = 0
        self.text = ""
        self.token_ids: list[int] = []
        self.reason: FinishReason | None = None
        self.usage: CompletionUsage | None = None

    async def pieces(self, every: float | None = None) -> AsyncGenerator[Piece | None]:
        """None first, once the prompt is taken, and whenever nothing came for `every` seconds."""
        cost = Sum(1)
        async with self.desk.answering(self.request, lambda: [self.ask()], 1) as answers:
            self.prompt_tokens = answers.handles[0].prompt_tokens
            yield None
            async with aclosing(answers.pieces(every)) as pieces:
                async for found in pieces:
                    if found is None:
                        yield None
                        continue
                    _, piece = found
                    cost.add(0, piece)
                    self.text += piece.text
                    self.token_ids.append(piece.token_id)
                    self.reason = piece.finish_reason
                    if piece.finish_reason is not None:
                        self.usage = cost.usage()
                        note_tokens(self.request, self.usage)
                    yield piece

    async def whole(self) -> None:
        async with aclosing(self.pieces()) as pieces:
            async for _ in pieces:
                pass

    @property
    def cached_tokens(self) -> int:
        details = self.usage and self.usage.prompt_tokens_details
        return (details and details.cached_tokens) or 0
