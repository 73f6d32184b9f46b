"""The one decode loop: feed a sequence, let it choose, until it ends. `generate` folds it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable

from neuralchat_lite.generation.sequence import Piece, Reply, Sequence
from neuralchat_lite.generation.stream import Stream
from neuralchat_lite.kernels.interruption import Interrupted, interrupted_by
from neuralchat_lite.kernels.leaving import at_work


def stream(sequence: Sequence) -> Stream:
    """Generate token by token; nothing is computed until the first piece is asked for.

    When it is cancelled, the cache holds exactly the tokens that were fed.
    """
    return Stream(lambda cancelled: pieces_of(sequence, cancelled))


def pieces_of(sequence: Sequence, cancelled: Callable[[], bool]) -> Generator[Piece, None, None]:
    """`stream` as a generator.

    cancelled: asked before each token, and before each block of the prompt
    """
    while not sequence.finished and not cancelled():
        try:
            with at_work(), interrupted_by(cancelled):
                logits = sequence.decoder.forward(sequence.next_ids(), sequence.cache)
                piece = sequence.accept(logits)
        except Interrupted:
            return
        yield piece


def generate(sequence: Sequence) -> Reply:
    """`stream`, joined."""
    return fold(stream(sequence))


def fold(pieces: Iterable[Piece]) -> Reply:
    """Join the pieces of a stream that runs to its end."""
    kept = list(pieces)
    last = kept[-1]
    assert last.finish_reason is not None
    assert last.timings is not None
    logprobs = tuple(piece.logprob for piece in kept if piece.logprob is not None)
    likeliest = tuple(piece.top_logprobs for piece in kept if piece.top_logprobs is not None)
    return Reply(
        text="".join(piece.text for piece in kept),
        token_ids=tuple(piece.token_id for piece in kept),
        finish_reason=last.finish_reason,
        timings=last.timings,
        prompt_tokens=last.timings.prompt_tokens,
        logprobs=logprobs or None,
        top_logprobs=likeliest or None,
    )
