"""The one decode loop: feed a token, look at the logits, choose the next. `generate` folds it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from neuralchat_lite.checkpoints.tokenizer import Tokenizer
from neuralchat_lite.engines.engine import Cache, Decoder
from neuralchat_lite.errors import CheckpointError, ConfigError, PromptError
from neuralchat_lite.generation.text import Detokenizer, StopStrings

FinishReason = Literal["eos", "stop", "length", "context"]


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -1e30 < value < 1e30  # an int may be too large for a float


# option -> (what it must be, whether a value is)
RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "max_new_tokens": ("a positive integer", lambda v: is_integer(v) and v > 0),
    # Below that, logits / temperature leaves the range of fp32.
    "temperature": (
        "0 (greedy) or a finite number >= 1e-6",
        lambda v: is_number(v) and (v == 0 or v >= 1e-6),
    ),
    "top_k": ("an integer >= 0 (0: off)", lambda v: is_integer(v) and v >= 0),
    "top_p": ("a number in (0, 1] (1: off)", lambda v: is_number(v) and 0 < v <= 1),
    "min_p": ("a number in [0, 1] (0: off)", lambda v: is_number(v) and 0 <= v <= 1),
    # Beyond that, logits leave the range of fp32.
    "repetition_penalty": (
        "a number from 0.01 to 100 (1: off)",
        lambda v: is_number(v) and 0.01 <= v <= 100,
    ),
    "seed": (
        "None or an integer in [0, 2**64)",
        lambda v: v is None or (is_integer(v) and 0 <= v < 2**64),
    ),
    "stop": (
        "a string or several, none of them empty",
        lambda v: isinstance(v, tuple) and all(isinstance(s, str) and s for s in v),
    ),
    "ignore_eos": ("True or False", lambda v: isinstance(v, bool)),
}


@dataclass(frozen=True)
class GenerationOptions:
    """How to choose tokens and when to stop. Raises ConfigError for a value that cannot be.

    max_new_tokens: tokens to generate at most
    temperature: 0 takes the likeliest token; otherwise logits are divided by it and sampled
    top_k, top_p, min_p: which tokens may be sampled; they need a temperature
    repetition_penalty: divides the (positive) logits of tokens that have occurred
    seed: makes sampling repeatable; None draws a new one from the system
    stop: texts that end the answer and are not part of it
    ignore_eos: go on behind the end-of-text token
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: Sequence[str] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        stop: Any = self.stop
        if stop is None or isinstance(stop, str):
            object.__setattr__(self, "stop", () if stop is None else (stop,))
        elif isinstance(stop, Iterable):
            object.__setattr__(self, "stop", tuple(stop))
        for name, (rule, holds) in RULES.items():
            value = getattr(self, name)
            if not holds(value):
                raise ConfigError(f"{name} must be {rule}, got {value!r}")
        filters = {"top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p}
        idle = [name for name, value in filters.items() if value != getattr(type(self), name)]
        if idle and self.temperature == 0:
            raise ConfigError(
                f"{', '.join(idle)} would have no effect with temperature 0 (greedy): "
                "set a temperature > 0, e.g. temperature=0.7, or leave it out"
            )

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> GenerationOptions:
        """From keyword arguments. Raises ConfigError that lists the names for an unknown one."""
        names = [field.name for field in fields(cls)]
        unknown = sorted(set(options) - set(names))
        if unknown:
            raise ConfigError(
                f"unknown generation option {', '.join(unknown)}: expected {', '.join(names)}"
            )
        return cls(**options)


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


def generate(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    options: GenerationOptions,
    cache: Cache | None = None,
) -> Reply:
    """`stream`, joined."""
    return fold(stream(decoder, tokenizer, prompt_ids, options, cache))


def fold(pieces: Iterable[Piece]) -> Reply:
    """Join the pieces of a stream that runs to its end."""
    kept = list(pieces)
    last = kept[-1]
    assert last.finish_reason is not None
    assert last.timings is not None
    return Reply(
        text="".join(piece.text for piece in kept),
        token_ids=tuple(piece.token_id for piece in kept),
        finish_reason=last.finish_reason,
        timings=last.timings,
        prompt_tokens=last.timings.prompt_tokens,
    )


def stream(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    options: GenerationOptions,
    cache: Cache | None = None,
) -> Iterator[Piece]:
    """Generate token by token; nothing is computed until the first piece is asked for.

    prompt_ids: the whole prompt, of which `cache`, when given, holds the first `cache.length`
    Closing the iterator cancels; the cache then holds exactly the tokens that were fed.
    Raises PromptError when the prompt is empty or longer than the context.
    """
    ids = list(prompt_ids)
    if not ids:
        raise PromptError("the prompt has no tokens: give at least one")
    if len(ids) > decoder.context_length:
        raise PromptError(
            f"the prompt has {len(ids)} tokens, the context has {decoder.context_length}: "
            "shorten it, or load with a larger context_length "
            f"(this model allows {decoder.architecture.max_positions})"
        )
    if cache is None:
        expected = min(len(ids) + options.max_new_tokens, len(ids) + 256, decoder.context_length)
        cache = decoder.new_cache(expected)
    assert cache.length < len(ids), "the last token of the prompt is always fed"
    return decode(decoder, tokenizer, ids, options, cache)


def decode(
    decoder: Decoder,
    tokenizer: Tokenizer,
    ids: list[int],
    options: GenerationOptions,
    cache: Cache,
) -> Iterator[Piece]:
    clock = Clock(prompt_tokens=len(ids), cached_tokens=cache.length)
    clock.start()
    choose = Chooser(options)
    visible = StopStrings(options.stop)
    text_of = Detokenizer(tokenizer)
    eos = () if options.ignore_eos else decoder.architecture.eos_ids
    feed = ids[cache.length :]
    for count in range(1, options.max_new_tokens + 1):
        logits = decoder.forward(feed, cache)
        token = choose(logits, ids)
        ids.append(token)
        reason: FinishReason | None = None
        if token in eos:
            text, reason = "", "eos"
        else:
            text, stopped = visible.push(text_of.push(token))
            if stopped:
                reason = "stop"
            elif count == options.max_new_tokens:
                reason = "length"
            elif cache.length == decoder.context_length:
                reason = "context"
        if reason is not None and reason != "stop":
            rest, stopped = visible.push(text_of.finish())
            text += rest if stopped else rest + visible.finish()
            reason = "stop" if stopped else reason
        clock.stop()
        yield Piece(text, token, reason, clock.timings(decoder) if reason else None)
        if reason:
            return
        clock.start()
        feed = [token]


class Chooser:
    """Choose a token from logits: the likeliest, or a draw with a generator of its own.

    Penalty and filters are transformers' own processors, in transformers' order.
    """

    def __init__(self, options: GenerationOptions) -> None:
        self.greedy = options.temperature == 0
        self.penalties: list[Any] = []
        self.filters: list[Any] = []
        if options.repetition_penalty != 1.0:
            from transformers import RepetitionPenaltyLogitsProcessor

            self.penalties.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
        if not self.greedy:
            self.filters = sampling_filters(options)
            self.generator = torch.Generator()
            if options.seed is None:
                self.generator.seed()
            else:
                self.generator.manual_seed(options.seed)

    def __call__(self, logits: Tensor, ids: Sequence[int]) -> int:
        """logits: [vocab] fp32; ids: all tokens before. Raises CheckpointError for NaN or inf."""
        # In numpy: torch would wake its threads for a large vocabulary, and while they spin
        # they take the cores from ours (12 ms against 0.1 ms, vocabulary 152k, busy machine).
        finite = np.isfinite(logits.numpy())
        if not finite.all():
            raise CheckpointError(
                f"{int((~finite).sum())} of {len(logits)} logits behind {len(ids)} tokens are NaN "
                "or infinite, expected finite numbers: check the quantized files with "
                "`neuralchat-lite cache verify`, or the checkpoint with compute_dtype='fp32'"
            )
        if self.greedy and not self.penalties:
            return int(logits.numpy().argmax())
        scores = logits[None]
        if self.penalties:
            before = torch.tensor([list(ids)])
            for penalty in self.penalties:
                scores = penalty(before, scores)
        if self.greedy:
            return int(scores.argmax())
        for narrow in self.filters:
            scores = narrow(None, scores)
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self.generator))


def sampling_filters(options: GenerationOptions) -> list[Any]:
    import transformers as hf

    filters: list[Any] = []
    if options.temperature != 1.0:
        filters.append(hf.TemperatureLogitsWarper(float(options.temperature)))
    if options.top_k:
        filters.append(hf.TopKLogitsWarper(options.top_k))
    if options.top_p < 1.0:
        filters.append(hf.TopPLogitsWarper(float(options.top_p)))
    if options.min_p > 0.0:
        filters.append(hf.MinPLogitsWarper(float(options.min_p)))
    return filters


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
