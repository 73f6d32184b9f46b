"""One answer to messages, for the forms that know one alone."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from fastapi import Request
from openai.types import CompletionUsage

from neuralchat_lite.chat.answers import NAMES_OF_REASONING, AnswerParser, Delta
from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.generation.sequence import FinishReason, Piece
from neuralchat_lite.server.answers import Sum
from neuralchat_lite.server.blocks import Block, Part, take
from neuralchat_lite.server.calling import Calling
from neuralchat_lite.server.desk import Desk


class Single:
    """blocks: of the answer as far as it has come
    usage, reason, token_ids, reasoning_tokens: there when the parts have ended
    """

    def __init__(
        self,
        request: Request,
        desk: Desk,
        ask: Callable[[], tuple[list[dict[str, Any]], GenerationOptions]],
        calling: Calling,
        formed: bool = False,
    ) -> None:
        """ask: called in a thread, gives the messages and how to answer them
        formed: whether the request gives the answer a form
        """
        self.request, self.desk, self.ask = request, desk, ask
        self.calling, self.formed = calling, formed
        self.prompt_tokens = 0
        self.blocks: list[Block] = []
        self.token_ids: list[int] = []
        self.reasoning_tokens = 0
        self.reason: FinishReason | None = None
        self.usage: CompletionUsage | None = None

    async def parts(self, every: float | None = None) -> AsyncGenerator[Part | None]:
        """None first, once the prompt is taken, and whenever nothing came for `every` seconds.
        There is one block at least, though it may be an empty text."""
        cost = Sum(1)
        async with self.desk.answering(self.request, lambda: [self.ask()], 1) as answers:
            [handle] = answers.handles
            self.prompt_tokens = handle.prompt_tokens
            tokenizer = self.desk.model.tokenizer
            reader = self.calling.reader(tokenizer, handle.prompt_ids, self.formed)
            yield None
            async with aclosing(answers.pieces(every)) as pieces:
                async for found in pieces:
                    if found is None:
                        yield None
                        continue
                    _, piece = found
                    cost.add(0, piece)
                    for delta in self.read(reader, piece):
                        yield take(self.blocks, delta)
        if not self.blocks:
            yield take(self.blocks, Delta(content=""))
        self.usage = cost.note(self.request, self.desk.name)

    def read(self, reader: AnswerParser, piece: Piece) -> list[Delta]:
        self.token_ids.append(piece.token_id)
        self.reason = piece.finish_reason
        thought = reader.region in NAMES_OF_REASONING
        deltas = reader.feed(piece.text, piece.token_id)
        self.reasoning_tokens += thought or reader.region in NAMES_OF_REASONING
        if piece.finish_reason is not None:
            deltas += reader.close()
        return deltas

    async def whole(self) -> None:
        async with aclosing(self.parts()) as parts:
            async for _ in parts:
                pass

    @property
    def called(self) -> bool:
        """Whether the answer ended with calls."""
        return any(block.kind == "call" for block in self.blocks) and self.reason in ("eos", "stop")

    @property
    def cached_tokens(self) -> int:
        details = self.usage and self.usage.prompt_tokens_details
        return (details and details.cached_tokens) or 0
