"""A conversation of several turns. Earlier turns stay in the key/value cache."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

from typing_extensions import Unpack

from neuralchat_lite.checkpoints.tokenizer import Tokenizer
from neuralchat_lite.engines.engine import Decoder
from neuralchat_lite.errors import PromptError
from neuralchat_lite.generation.loop import fold
from neuralchat_lite.generation.messages import check_messages
from neuralchat_lite.generation.options import (
    GenerationKeywords,
    GenerationOptions,
    refuse_several_answers,
)
from neuralchat_lite.generation.prefix_cache import PrefixCache
from neuralchat_lite.generation.prompt import Prompt, encode_messages, encode_turns
from neuralchat_lite.generation.scheduler import Scheduler
from neuralchat_lite.generation.sequence import Piece, Reply, Sequence
from neuralchat_lite.generation.stream import Stream
from neuralchat_lite.kernels.leaving import at_work
from neuralchat_lite.shortages import shortages


class Conversation:
    """Turns with one model. Earlier turns stay in the key/value cache, so a turn only costs its new
    tokens.

    One conversation answers one turn at a time; many conversations share a model.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        system: str | None = None,
        scheduler: Scheduler | None = None,
        **options: Unpack[GenerationKeywords],
    ) -> None:
        """system: the system message; options: of GenerationOptions, for all turns

        scheduler: of the model, where others may be computed at the same time
        """
        self.decoder = decoder
        self.scheduler = scheduler or Scheduler(decoder)
        self.tokenizer = tokenizer
        self.system = system
        self.options = GenerationOptions.of(options)
        self.turn = threading.Lock()
        self.messages: list[dict[str, str]] = []
        self.forget()

    def reset(self) -> None:
        """Forget all turns; the system message stays. Raises PromptError while an answer is still
        being streamed."""
        with self.taking_turn():
            self.forget()

    def undo(self) -> str | None:
        """Take back the last turn, and return what was said in it; None when there is none.

        Raises PromptError while an answer is still being streamed.
        """
        with self.taking_turn():
            if not self.messages or self.messages[-1]["role"] != "assistant":
                return None
            *self.messages, said, _ = self.messages
            return said["content"]

    def resume(self, messages: list[dict[str, str]]) -> None:
        """Go on from messages that were said before: a system message if there is one, then
        whole turns. Raises PromptError for messages of another form."""
        if messages and messages[-1].get("role") != "system":
            check_messages([*messages, {"role": "user", "content": "x"}])
        elif len(messages) > 1:
            raise PromptError("a system message comes first, and only once")
        with self.taking_turn():
            self.messages = [dict(message) for message in messages]
            first = messages[0] if messages else {}
            self.system = first["content"] if first.get("role") == "system" else None

    def token_count(self) -> int:
        """Tokens that the messages so far take in the context. Raises PromptError when they are
        far more than it holds."""
        if len(self.messages) == (self.system is not None):  # no turn: templates may want one
            return len(self.tokenizer.encode(self.system or "", add_special_tokens=False))
        limit = self.decoder.context_length
        variables = self.options.chat_template_kwargs
        ids = encode_turns(self.messages, self.tokenizer, limit, asks=False, variables=variables)
        return len(ids)

    def forget(self) -> None:
        with_system = self.system is not None
        self.messages = [{"role": "system", "content": self.system or ""}] if with_system else []
        self.prefix = PrefixCache(self.decoder)

    def say(self, text: str, **options: Unpack[GenerationKeywords]) -> Reply:
        """Send a message and wait for the whole answer. See `stream`."""
        return fold(self.stream(text, **options))

    def stream(self, text: str, **options: Unpack[GenerationKeywords]) -> Stream:
        """Send a message; the answer comes piece by piece.

        A turn that is cancelled (`cancel` or `close` of the stream) keeps what was said so far,
        and a turn without a word of answer is forgotten.

        Raises PromptError at once for a message that cannot be sent, or is far too long. Raises
        PromptError when the first piece is asked for, if the conversation is longer than the
        context or an earlier answer is still being streamed.
        """
        settings = self.options.but(options)
        refuse_several_answers(settings)
        messages, prompt = self.encode(self.messages, text, settings)
        return Stream(lambda cancelled: self.answer(messages, prompt, settings, cancelled))

    @shortages()
    @at_work()
    def encode(
        self, before: list[dict[str, str]], text: str, options: GenerationOptions
    ) -> tuple[list[dict[str, str]], Prompt]:
        messages = [*before, {"role": "user", "content": text}]
        limit = self.decoder.context_length
        return messages, encode_messages(messages, self.tokenizer, limit, options)

    @contextmanager
    def taking_turn(self) -> Iterator[None]:
        """One turn at a time. Raises PromptError while an answer is still being streamed."""
        if not self.turn.acquire(blocking=False):
            raise PromptError(
                "this conversation is still answering: close or finish that stream first, "
                "or open another conversation"
            )
        try:
            yield
        finally:
            self.turn.release()

    def answer(
        self,
        messages: list[dict[str, str]],
        prompt: Prompt,
        options: GenerationOptions,
        cancelled: Callable[[], bool],
    ) -> Generator[Piece, None, None]:
        with self.taking_turn():
            *before, said = messages
            if before != self.messages:  # another turn was answered since this one was sent
                messages, prompt = self.encode(self.messages, said["content"], options)
            yield from self.feed_and_keep(messages, prompt, options, cancelled)

    def feed_and_keep(
        self,
        messages: list[dict[str, str]],
        prompt: Prompt,
        options: GenerationOptions,
        cancelled: Callable[[], bool],
    ) -> Generator[Piece, None, None]:
        cache = self.prefix.go_back_to(prompt.ids)
        sequence = Sequence(self.decoder, self.tokenizer, prompt, options, cache)
        said = ""
        try:
            for piece in self.scheduler.pieces(sequence, cancelled):
                said += piece.text
                yield piece
        finally:
            self.prefix.remember(sequence.ids)
            if said:
                said = said if options.echo else options.prefill + said
                self.messages = [*messages, {"role": "assistant", "content": said}]
