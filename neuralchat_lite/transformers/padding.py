"""Which columns of a batch hold tokens: attention masks and positions, checked against the cache.

The native decoder never computes padding, and it counts the tokens of each row. A mask or positions
that ask for anything else are refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neuralchat_lite.transformers.cache import NativeCache


def real_columns(input_ids: Tensor, mask: Tensor | None, cache: NativeCache) -> Tensor:
    """Check the mask and return [batch, new] bool: true where a new column holds a token.

    input_ids: [batch, new]
    mask: [batch, past + new], 0 for padding, or None when there is no padding
    Raises ValueError for a mask that does not fit the batch or the cache.
    """
    batch, new = input_ids.shape
    cache.check_batch(batch)
    past = cache.get_seq_length()
    if mask is None:
        return torch.ones((batch, new), dtype=torch.bool)
    if mask.shape != (batch, past + new):
        raise ValueError(
            f"attention_mask must be [batch, past + new] = {[batch, past + new]}, got "
            f"{list(mask.shape)}: 1 for tokens and 0 for padding"
        )
    real = mask.bool()
    if past and not torch.equal(real[:, :past], cache.real):
        raise ValueError(
            "attention_mask differs from that of an earlier call in the columns that the cache "
            "holds: pass the same mask, or start with a new cache"
        )
    real = real[:, past:]
    if not past and not bool(real.any(dim=1).all()):
        empty = int((~real.any(dim=1)).nonzero()[0])
        raise ValueError(f"row {empty} of attention_mask has no token: give each row at least one")
    return real


def check_positions(position_ids: Tensor | None, real: Tensor, cache: NativeCache) -> None:
    """Raise ValueError unless the positions are those that the native decoder computes.

    position_ids: [batch, new] or None. They may count the tokens of each row, or its columns: with
        all padding before the first token, the distances between tokens are the same.
    """
    before = torch.cat((cache.real, real), dim=1) if cache.rows else real
    starts = before[:, 1:] & ~before[:, :-1]
    runs = before[:, 0].long() + starts.sum(dim=1)  # of tokens, in each row
    if position_ids is None:
        # transformers then counts columns, including padding between two tokens.
        if bool((runs > 1).any()):
            raise ValueError(
                f"row {int(runs.argmax())} of attention_mask has padding between two tokens: give "
                "position_ids that count its tokens, attention_mask.cumsum(1) - 1"
            )
        return
    columns = torch.arange(before.shape[1])[-real.shape[1] :].expand_as(real)
    tokens = (before.cumsum(dim=1) - 1)[:, -real.shape[1] :]
    given = position_ids.expand_as(real)
    for row in range(len(real)):
        here = real[row]
        places = given[row, here].long()
        # Padding between two tokens would count as a distance.
        counts = (tokens,) if runs[row] > 1 else (tokens, columns)
        if not any(torch.equal(places, count[row, here]) for count in counts):
            remedy = "leave them out, the native decoder counts the tokens of each row"
            if runs[row] > 1:
                remedy = (
                    "with padding between two tokens give positions that count the tokens of each "
                    "row, attention_mask.cumsum(1) - 1"
                )
            elif past := cache.get_seq_length():
                remedy = (
                    f"the cache holds {past} columns, and the new ids come after them; give only "
                    "ids that it does not hold, shorten it with cache.crop, or start with a new one"
                )
            raise ValueError(
                f"position_ids of row {row} are {places.tolist()[:8]}..., expected "
                f"{tokens[row, here].tolist()[:8]}...: {remedy}"
            )
