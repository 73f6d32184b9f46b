"""Feeding a batch to the native decoder: padding is left out, and equal prompts are fed once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from neuralchat_lite.models.kv_cache import KVCache
from neuralchat_lite.transformers.cache import NativeCache


def feed(input_ids: Tensor, real: Tensor, cache: NativeCache, columns: int) -> Tensor:
    """Feed the tokens of new columns and return the logits of the last `columns` columns.

    input_ids: [batch, new]
    real: [batch, new] bool, true where a column holds a token and not padding
    columns: 0 for all columns
    Returns fp32 logits [batch, columns, vocab], zero where a row has padding. If the call is
    interrupted or raises, the cache goes back to what it was, or is marked as broken.
    """
    batch, new = input_ids.shape
    cache.grow(real)
    before = [row.length for row in cache.rows]
    try:
        found = feed_rows(input_ids, real, cache, columns)
    except BaseException:
        cache.go_back(before, cache.real.shape[1] - new)
        raise
    shown = min(columns or new, new)
    shape = (batch, shown, cache.decoder.architecture.vocab_size)
    logits = torch.zeros(shape, dtype=torch.float32)
    for row in range(batch):
        places = real[row, new - shown :]
        count = int(places.sum())
        if count:
            logits[row, places] = found[row][len(found[row]) - count :]
    return logits


def feed_rows(input_ids: Tensor, real: Tensor, cache: NativeCache, columns: int) -> list[Tensor]:
    """For each row, the logits of its last tokens: at least of those in the last columns."""
    tokens = [ids[mask] for ids, mask in zip(input_ids, real, strict=True)]
    # Beams, and several sequences of one prompt, start with the same tokens: one row is fed, and
    # the others copy its keys and values.
    first = [first_equal_row(row, tokens, cache.rows) for row in range(len(tokens))]
    leaders = [row for row in range(len(tokens)) if first[row] == row and len(tokens[row])]
    logits = dict.fromkeys(range(len(tokens)), torch.zeros((0, 0)))
    if leaders:
        found = cache.decoder.forward_batch(
            [tokens[row] for row in leaders],
            [cache.rows[row] for row in leaders],
            keep=columns or None,
        )
        logits |= dict(zip(leaders, found, strict=True))
    for row, leader in enumerate(first):
        if leader != row:
            cache.rows[row] = cache.rows[leader].copy()
            logits[row] = logits[leader]
    return list(logits.values())


def first_equal_row(row: int, tokens: Sequence[Tensor], rows: Sequence[KVCache]) -> int:
    """The first row that starts with the same tokens, or this row itself. A row that already holds
    tokens equals no other."""
    if rows[row].length:
        return row
    equal = (
        other
        for other in range(row)
        if not rows[other].length and torch.equal(tokens[other], tokens[row])
    )
    return next(equal, row)
