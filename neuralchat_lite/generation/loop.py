"""The one decode loop: feed a token, look at the logits, choose the next. `generate` folds it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from neuralchat_lite.checkpoints.tokenizer import Tokenizer
from neuralchat_lite.engines.engine import Cache, Decoder
from neuralchat_lite.errors import PromptError
from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.generation.sampling import Chooser
from neuralchat_lite.generation.sequence import Clock, FinishReason, Piece, Reply
from neuralchat_lite.generation.text import Detokenizer, StopStrings


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
