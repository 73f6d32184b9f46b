"""The one decode loop: feed a sequence, let it choose, until it ends. `generate` folds it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from neuralchat_lite.generation.sequence import Piece, Reply, Sequence


def stream(sequence: Sequence) -> Iterator[Piece]:
    """Generate token by token; nothing is computed until the first piece is asked for.

    Closing the iterator cancels; the cache then holds exactly the tokens that were fed.
    """
    while not sequence.finished:
        logits = sequence.decoder.forward(sequence.next_ids(), sequence.cache)
        yield sequence.accept(logits)


def generate(sequence: Sequence) -> Reply:
    """`stream`, joined."""
    return fold(stream(sequence))


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
