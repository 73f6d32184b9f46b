"""What answers of all forms have in common: how they end, their cost, log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionTokenLogprob
from openai.types.chat.chat_completion_token_logprob import TopLogprob
from openai.types.completion_choice import Logprobs
from openai.types.completion_usage import PromptTokensDetails

from neuralchat_lite.generation.handle import Handle
from neuralchat_lite.generation.logprobs import TopLogprob as Likeliest
from neuralchat_lite.generation.score import Score
from neuralchat_lite.generation.sequence import Piece, Timings
from neuralchat_lite.generation.text import REPLACEMENT
from neuralchat_lite.server.cost import Cost
from neuralchat_lite.server.desk import Answers
from neuralchat_lite.server.metrics import REASONS


@dataclass
class Sum:
    """The cost of the answers to one request. A prompt with several answers counts once."""

    answers: int  # to each prompt
    ended: dict[int, Timings] = field(default_factory=dict)

    def add(self, index: int, piece: Piece) -> None:
        if piece.timings is not None:
            self.ended[index] = piece.timings

    @property
    def first(self) -> Timings:
        return self.ended[min(self.ended)]

    def note(self, request: Request, model: str) -> CompletionUsage:
        """Let the log and traces have it too. Returns the usage."""
        usage = self.usage()
        prompt, new = usage.prompt_tokens, usage.completion_tokens
        Cost(model, prompt, new, self.first.time_to_first_token_s).note(request)
        return usage

    def usage(self) -> CompletionUsage:
        firsts = [timings for index, timings in self.ended.items() if index % self.answers == 0]
        prompt = sum(timings.prompt_tokens for timings in firsts)
        new = sum(timings.new_tokens for timings in self.ended.values())
        return CompletionUsage(
            prompt_tokens=prompt,
            completion_tokens=new,
            total_tokens=prompt + new,
            prompt_tokens_details=PromptTokensDetails(
                cached_tokens=sum(timings.cached_tokens for timings in firsts)
            ),
        )

    def timings(self) -> dict[str, Any]:
        """Of the first answer, in seconds. `usage` has the sums."""
        one = self.first
        return {
            "time_to_first_token_s": one.time_to_first_token_s,
            "time_per_token_s": one.time_per_token_s,
            "tokens_per_second": one.tokens_per_second,
            "drafted": one.drafted,
            "accepted": one.accepted,
        }


def finish_reason(piece: Piece) -> Any:
    return None if piece.finish_reason is None else REASONS[piece.finish_reason]


def chat_logprobs(answers: Answers, pieces: Sequence[Piece]) -> list[ChatCompletionTokenLogprob]:
    """Of the tokens of the text; the one that ends the turn is none of them."""
    one = answers.handles[0]

    def named(token: int) -> dict[str, Any]:
        known = one.token_bytes(token)
        return {"token": one.token_name(token), "bytes": None if known is None else list(known)}

    return [
        ChatCompletionTokenLogprob(
            **named(piece.token_id),
            logprob=piece.logprob,
            top_logprobs=[
                TopLogprob(**named(top.token_id), logprob=top.logprob)
                for top in piece.top_logprobs or ()
            ],
        )
        for piece in pieces
        if piece.logprob is not None and piece.finish_reason != "eos"
    ]


def text_logprobs(
    answers: Answers, pieces: Sequence[Piece], offset: int, score: Score | None = None
) -> dict[str, list[Any]]:
    """In the older form, where nothing comes before the first token of a prompt.

    offset: characters of the text before these pieces
    score: of the prompt, if the text begins with it
    """
    one = answers.handles[0]
    found: dict[str, list[Any]] = {name: [] for name in Logprobs.model_fields}

    def add(token: int, value: float | None, top: Sequence[Likeliest] | None, offset: int) -> None:
        found["text_offset"].append(offset)
        found["token_logprobs"].append(value)
        found["tokens"].append(text_name(one, token))
        likeliest = {text_name(one, each.token_id): each.logprob for each in top or ()}
        found["top_logprobs"].append(None if value is None else likeliest)

    ahead = 0  # of the first piece: the prompt, which the echo has put before its text
    if score is not None:
        pushed = one.detokenizer()
        tops = score.top_logprobs or (None,) * len(score.token_ids)
        for token, value, top in zip(score.token_ids, score.logprobs, tops, strict=True):
            add(token, value, top, offset + ahead)
            ahead += len(pushed.push(token))
    for piece in pieces:
        if piece.logprob is not None and piece.finish_reason != "eos":
            add(piece.token_id, piece.logprob, piece.top_logprobs, offset + ahead)
        offset, ahead = offset + len(piece.text), 0
    return found


def text_name(handle: Handle, token: int) -> str:
    """OpenAI's name of a token that is a part of a character is its bytes."""
    name, known = handle.token_name(token), handle.token_bytes(token)
    if REPLACEMENT not in name or known is None:
        return name
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in known)
