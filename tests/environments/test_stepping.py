"""Caches of old versions of transformers, which other environments have."""

from __future__ import annotations

import pytest
import torch

from neuralchat_lite.environments.worker.stepping import Positions


class ListCache:
    """transformers 4.41: lists of [batch, heads, positions, head_dim], and no `crop`."""

    def __init__(self, *lengths: int) -> None:
        self.key_cache = [torch.arange(2.0 * n).view(1, 1, n, 2) for n in lengths]
        self.value_cache = [-keys for keys in self.key_cache]
        self._seen_tokens = lengths[0]

    def get_seq_length(self) -> int:
        return self.key_cache[0].shape[-2]


def test_a_cache_of_lists_goes_back_in_every_layer() -> None:
    positions = Positions()
    positions.kept = ListCache(5, 4)  # interrupted: the second layer has not seen the last one
    keys = [keys.clone() for keys in positions.kept.key_cache]
    positions.settle(3)
    for before, after, values in zip(
        keys, positions.kept.key_cache, positions.kept.value_cache, strict=True
    ):
        assert after.equal(before[:, :, :3]) and values.equal(-after)
    assert positions.kept._seen_tokens == 3


def test_a_cache_that_has_lost_positions_is_found_out() -> None:
    positions = Positions()
    positions.kept = ListCache(2, 2)
    with pytest.raises(RuntimeError, match="has 2 positions, expected 4"):
        positions.settle(4)
