"""One generation as it is seen from outside: its pieces, its reply, and what it cost."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from neuralchat_lite.engines.engine import Decoder

FinishReason = Literal["eos", "stop", "length", "context"]


@dataclass(frozen=True)
class Timings:
    """What a reply cost. Times in seconds; decode figures are None with a single new token.

    Only the library's own time counts, not what the caller does between two pieces.
    """

    prompt_tokens: int
    cached_tokens: int  # of the prompt, those that a conversation had already fed
    new_tokens: int
    time_to_first_token_s: float
    time_per_token_s: float | None  # mean over the tokens after the first
    tokens_per_second: float | None
    bytes_per_token: int  # weights, keys and values that one decoded token reads, on average
    bytes_per_second: float | None  # bytes_per_token / time_per_token_s: compare to the bandwidth
    load_s: float | None = None


@dataclass(frozen=True)
class Piece:
    """One new token: the text that it makes certain, and on the last one how it ended."""

    text: str
    token_id: int
    finish_reason: FinishReason | None = None
    timings: Timings | None = None


@dataclass(frozen=True)
class Reply:
    """A whole answer. token_ids include the end-of-text token, text does not."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    timings: Timings
    prompt_tokens: int


class Clock:
    """Time spent inside the loop, first token and the others apart."""

    def __init__(self, prompt_tokens: int, cached_tokens: int) -> None:
        self.prompt_tokens, self.cached_tokens = prompt_tokens, cached_tokens
        self.steps = 0
        self.first = self.others = self.started = 0.0

    def start(self) -> None:
        self.started = time.perf_counter()

    def stop(self) -> None:
        spent = time.perf_counter() - self.started
        self.steps += 1
        if self.steps == 1:
            self.first = spent
        else:
            self.others += spent

    def timings(self, decoder: Decoder) -> Timings:
        mean = self.others / (self.steps - 1) if self.steps > 1 else None
        size = decoder.bytes_per_token(self.prompt_tokens + self.steps // 2)
        return Timings(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            new_tokens=self.steps,
            time_to_first_token_s=self.first,
            time_per_token_s=mean,
            tokens_per_second=1 / mean if mean else None,
            bytes_per_token=size,
            bytes_per_second=size / mean if mean else None,
        )
