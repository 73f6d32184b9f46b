"""A sequence piece by piece, and pieces joined."""

from __future__ import annotations

from collections.abc import Iterable

from neuralchat_lite.generation.scheduler import Scheduler
from neuralchat_lite.generation.sequence import Piece, Reply, Sequence
from neuralchat_lite.generation.stream import Stream


def stream(sequence: Sequence, scheduler: Scheduler | None = None) -> Stream:
    """Generate token by token; nothing is computed until the first piece is asked for.

    scheduler: of its model, where it may have company; None: it is alone
    When it is cancelled, the cache holds exactly the tokens that were fed.
    """
    shared = scheduler or Scheduler(sequence.decoder)
    return Stream(lambda cancelled: shared.pieces(sequence, cancelled))


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
