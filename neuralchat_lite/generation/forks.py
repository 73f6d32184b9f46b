"""Several answers to one prompt: sequences that share the keys and values of the prompt."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace

from neuralchat_lite.generation.loop import fold
from neuralchat_lite.generation.sequence import Piece, Reply, Sequence
from neuralchat_lite.kernels.interruption import interrupted_by
from neuralchat_lite.kernels.leaving import at_work

SEEDS = 2**64


def fork(sequence: Sequence, n: int) -> list[Sequence]:
    """`n` sequences in place of one that has no token of an answer yet, itself the first.

    They share the pages of its cache. So when its prompt is fed before, they all accept the same
    logits. Answer i has the seed `seed + i`, or without a seed one from the system; the others
    count the prompt as cached as far as it was fed.
    """
    assert sequence.new_tokens == 0 and not sequence.finished, "it forks before its answer begins"
    return [sequence, *(twin(sequence, index) for index in range(1, n))]


def twin(sequence: Sequence, index: int) -> Sequence:
    options = sequence.options
    seed = None if options.seed is None else (options.seed + index) % SEEDS
    made = Sequence(
        sequence.decoder,
        sequence.tokenizer,
        sequence.prompt,
        replace(options, seed=seed),
        load_s=sequence.clock.load_s,
    )
    made.cache = sequence.cache.copy()
    made.clock = copy(sequence.clock)  # it has waited for the prompt as long
    made.clock.cached_tokens = made.cache.length
    return made


def answers(sequence: Sequence, cancelled: Callable[[], bool] = lambda: False) -> list[Reply]:
    """The `options.n` answers of a sequence, computed together: its prompt goes through the layers
    once, and a step reads the weights once for all. An error of one ends all."""
    decoder = sequence.decoder
    with at_work(), interrupted_by(cancelled):
        logits = decoder.forward(sequence.next_ids(), sequence.cache)
        sequences = fork(sequence, sequence.options.n)
        pieces: list[list[Piece]] = [[one.accept(logits)] for one in sequences]
        while running := [i for i, one in enumerate(sequences) if not one.finished]:
            rows = decoder.forward_batch(
                [sequences[i].next_ids() for i in running], [sequences[i].cache for i in running]
            )
            for i, row in zip(running, rows, strict=True):
                pieces[i].append(sequences[i].accept(row[0]))
    return [fold(each) for each in pieces]
