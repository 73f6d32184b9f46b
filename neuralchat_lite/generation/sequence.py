"""A generation as an object: what to feed next, what to make of the logits, how it ended."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from neuralchat_lite.checkpoints.tokenizer import Tokenizer
from neuralchat_lite.engines.engine import WHEN_NOT_FINITE, Decoder
from neuralchat_lite.errors import ConfigError, ContextError, PromptError
from neuralchat_lite.generation.form import form_of
from neuralchat_lite.generation.logprobs import TopLogprob, likeliest, logprob
from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.generation.penalties import Answer
from neuralchat_lite.generation.prompt import Prompt
from neuralchat_lite.generation.sampling import Chooser
from neuralchat_lite.generation.speculation import DraftLength, drafts_of
from neuralchat_lite.generation.text import Detokenizer, StopStrings
from neuralchat_lite.generation.turn_ends import turn_ends

LONGEST_DRAFT = 15  # with the newest token a block of rows that the kernels take together
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
    drafted: int = 0  # tokens that were guessed
    accepted: int = 0  # of them, those that the model has chosen too


@dataclass(frozen=True)
class Piece:
    """One new token: the text that it makes certain, and on the last one how it ended.

    logprob, top_logprobs: where the options ask for them, of the token and of the likeliest ones,
        in the model's own distribution: before penalties, temperature and filters
    """

    text: str
    token_id: int
    finish_reason: FinishReason | None = None
    timings: Timings | None = None
    logprob: float | None = None
    top_logprobs: tuple[TopLogprob, ...] | None = None


@dataclass(frozen=True)
class Reply:
    """A whole answer. token_ids include the end-of-text token, text does not.

    logprobs, top_logprobs: for each of token_ids, as in `Piece`; None unless asked for
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    timings: Timings
    prompt_tokens: int
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[tuple[TopLogprob, ...], ...] | None = None


class Sequence:
    """One generation over a decoder. It computes no logits: whoever drives it does.

        while not sequence.finished:
            logits = decoder.forward(sequence.next_ids(), sequence.cache)
            piece = sequence.accept(logits)

    Several sequences may be fed together with `decoder.forward_batch`; nothing is shared between
    them, and an error of one ends that one alone.

    ids: all tokens so far, those of the prompt first
    cache: keys and values of the first `cache.length` of them
    own_cache: whether nobody else goes on with it
    finish_reason: how the text ended; None until then
    error: what `accept` raised, if it did; nothing comes after it
    timings: what the reply has cost, once the text has ended
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        prompt: Prompt,
        options: GenerationOptions,
        cache: Any = None,
        *,
        load_s: float | None = None,
    ) -> None:
        """cache: holds the first `cache.length` tokens of the prompt; a new one when None
        load_s: what loading the model took, for the timings

        Raises PromptError when the prompt is empty or longer than the context, ConfigError for
        a bias of a token that is not in the vocabulary.
        """
        check_room(prompt, decoder)
        check_biases(options, decoder)
        self.decoder = decoder
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.options = options
        self.ids = list(prompt.ids)
        self.prompt_tokens = len(self.ids)
        self.own_cache = cache is None
        self.cache = self.new_cache() if cache is None else cache
        assert self.cache.length < self.prompt_tokens, "the last token of the prompt is always fed"
        self.clock = Clock(self.prompt_tokens, self.cache.length, load_s)
        self.eos: Collection[int] = () if options.ignore_eos else self.ends_of(prompt)
        self.form = form_of(options, tokenizer, decoder.architecture.vocab_size, self.eos)
        self.forced: deque[int] = deque()  # the only tokens that its form allows next
        self.choose = Chooser(
            options,
            getattr(decoder, "when_not_finite", WHEN_NOT_FINITE),
            Answer(self.prompt_tokens, self.eos),
            self.form,
        )
        # A form says itself where the answer ends; a text in it that stops others is part of it.
        self.visible = StopStrings(() if self.form else (*options.stop, *prompt.stop))
        self.text_of = Detokenizer(tokenizer)
        self.drafts = options.draft and drafts_of(options.draft, self.ids)
        self.draft_length = DraftLength(LONGEST_DRAFT)
        self.echo = self.text_before(prompt) if options.echo else ""
        self.finish_reason: FinishReason | None = None
        self.error: BaseException | None = None
        self.timings: Timings | None = None
        self.clock.pause()

    def ends_of(self, prompt: Prompt) -> Collection[int]:
        architecture = self.decoder.architecture
        if prompt.of_messages:
            return frozenset(turn_ends(self.tokenizer, architecture))
        return architecture.eos_ids

    def text_before(self, prompt: Prompt) -> str:
        """What an answer that echoes begins with."""
        if prompt.text is not None:
            return prompt.text
        return self.tokenizer.decode(
            list(prompt.ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def new_cache(self) -> Any:
        # It grows when needed: most answers end long before max_new_tokens.
        expected = self.prompt_tokens + min(self.options.max_new_tokens, 256)
        return self.decoder.new_cache(min(expected, self.decoder.context_length))

    def start_with(self, shared: list[Any]) -> int:
        """Begin with pages of others that began alike (`KVCache.start_with`). Returns how many
        tokens need not be fed."""
        held: int = self.cache.start_with(shared)
        self.clock.cached_tokens = min(held, self.prompt_tokens)
        return held

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    def next_ids(self) -> list[int]:
        """What the cache does not hold yet: the prompt first, then the newest token.

        The time from here to `accept` is the library's.
        """
        assert not self.finished
        self.clock.resume()
        return self.ids[self.cache.length :]

    def draft(self, room: int) -> list[int]:
        """Guesses at the tokens after the newest, `room` at most; `next_ids` is that one alone.

        They are fed after it, and `accept_drafts` gets the logits of all.
        """
        if self.drafts is None:
            return []
        left = min(
            self.options.max_new_tokens - self.new_tokens - 1,
            self.decoder.context_length - len(self.ids),
            room,
        )
        length = self.draft_length.next() if left > 0 else 0
        found = self.drafts.draft(min(left, length)) if length else []
        return self.form.beginning(found) if self.form else found

    def accept(self, logits: Tensor) -> Piece:
        """Choose the next token from the logits of the last one fed, [vocab] fp32.

        Raises CheckpointError when they are not finite.
        """
        [piece] = self.chosen(logits[None], [])
        return piece

    def accept_drafts(self, logits: Tensor, drafted: list[int]) -> list[Piece]:
        """Choose tokens as long as they are the drafted ones, and one more. Those follow at once
        that the form of the answer forces: the next step feeds them together.

        logits: [1 + len(drafted), vocab] fp32, of the newest token and of the drafted ones
        """
        pieces = self.chosen(logits, drafted)
        known = len(self.ids) - 1
        while self.forced and not self.finished and not self.options.logprobs:
            pieces.append(self.take(self.forced.popleft()))
        if self.drafts is not None:
            self.drafts.extend(piece.token_id for piece in pieces)
        if drafted:
            self.cache.truncate(known)
        return pieces

    def chosen(self, logits: Tensor, drafted: list[int]) -> list[Piece]:
        assert not self.finished
        assert self.cache.length == len(self.ids) + len(drafted), "all of next_ids() is fed before"
        pieces: list[Piece] = []
        self.clock.drafted += len(drafted)
        for row, draft in zip(logits, [*drafted, None], strict=True):
            try:
                token = self.forced.popleft() if self.forced else self.choose(row, self.ids)
            except BaseException as error:
                if pieces and isinstance(error, Exception):
                    break  # the next step comes to it again, as without drafts
                self.error = error
                raise
            self.clock.accepted += token == draft
            pieces.append(self.take(token, row))
            if self.finished or token != draft:
                break
        if drafted:
            self.draft_length.tell(len(drafted), max(0, len(pieces) - 1))
        return pieces

    def take(self, token: int, logits: Tensor | None = None) -> Piece:
        """The piece of a token that was chosen from these logits, [vocab] fp32; None where there
        was no choice."""
        assert not self.finished
        try:
            self.ids.append(token)
            if self.form and token not in self.eos:
                self.form.take(token)
                if not self.forced:
                    self.forced.extend(self.form.forced())
            text, self.finish_reason = self.text_and_reason(token)
            known = self.logprobs(logits, token)
        except BaseException as error:
            self.error = error
            raise
        text, self.echo = self.echo + text, ""
        self.clock.count()
        if self.finish_reason is not None:
            self.timings = self.clock.timings(self.decoder)
        return Piece(text, token, self.finish_reason, self.timings, *known)

    def logprobs(
        self, logits: Tensor | None, token: int
    ) -> tuple[float | None, tuple[TopLogprob, ...] | None]:
        """Of a token, and of the likeliest ones; None unless the options ask for them."""
        if not self.options.logprobs or logits is None:
            return None, None
        top = likeliest(logits, self.options.top_logprobs, self.text_of.name)
        return logprob(logits, token), top

    @property
    def new_tokens(self) -> int:
        return len(self.ids) - self.prompt_tokens

    def text_and_reason(self, token: int) -> tuple[str, FinishReason | None]:
        """The text that a token makes certain, and how it ends the sequence if it does."""
        text, reason = "", self.end_after(token)
        if reason != "eos":
            text, stopped = self.shown(self.text_of.push(token))
            if stopped:
                return text, "stop"
        if reason is not None:
            rest, stopped = self.shown(self.text_of.finish())
            if stopped:
                return text + rest, "stop"
            text += rest + self.visible.finish()
        return text, reason

    def shown(self, text: str) -> tuple[str, bool]:
        """(text that may be shown, whether a stop string has ended it). As in vLLM, stop strings
        are looked for in the text of tokens after the first `min_new_tokens`."""
        if self.new_tokens <= self.options.min_new_tokens and self.options.min_new_tokens:
            return text, False
        return self.visible.push(text)

    def end_after(self, token: int) -> FinishReason | None:
        if token in self.eos:
            return "eos"
        if self.form and self.form.ended:
            return "stop"
        if self.new_tokens == self.options.max_new_tokens:
            return "length"
        return "context" if len(self.ids) > self.decoder.context_length else None


def check_room(prompt: Prompt, decoder: Decoder) -> None:
    if not prompt.ids:
        raise PromptError("the prompt has no tokens: give at least one")
    if len(prompt.ids) > decoder.context_length:
        raise ContextError(
            f"the prompt has {len(prompt.ids)} tokens, the context has {decoder.context_length}: "
            "shorten it, or load with a larger context_length "
            f"(this model allows {decoder.architecture.max_positions})"
        )


def check_biases(options: GenerationOptions, decoder: Decoder) -> None:
    for token in options.logit_bias or ():
        if token >= decoder.architecture.vocab_size:
            raise ConfigError(
                f"logit_bias has the token id {token}, outside the vocabulary of "
                f"{decoder.architecture.vocab_size}: use the model's own tokenizer"
            )


class Clock:
    """Time spent on a sequence, for the first token and for the others; it runs from the start."""

    def __init__(self, prompt_tokens: int, cached_tokens: int, load_s: float | None = None) -> None:
        self.prompt_tokens, self.cached_tokens, self.load_s = prompt_tokens, cached_tokens, load_s
        self.steps = self.drafted = self.accepted = 0
        self.first = self.others = 0.0
        self.started: float | None = None
        self.resume()

    def resume(self) -> None:
        if self.started is None:
            self.started = time.perf_counter()

    def pause(self) -> None:
        if self.started is None:
            return
        spent = time.perf_counter() - self.started
        self.started = None
        if self.steps == 0:
            self.first += spent
        else:
            self.others += spent

    def count(self) -> None:
        """A token is there."""
        self.pause()
        self.steps += 1

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
            load_s=self.load_s,
            drafted=self.drafted,
            accepted=self.accepted,
        )
