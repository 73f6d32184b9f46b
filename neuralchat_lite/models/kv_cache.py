"""Keys and values of one conversation: preallocated, growing on demand, a window kept as a ring.

A layer without a sliding window has a slot for each position. A layer with one has only as many
slots as the window and one prefill block need. Position p takes slot p % capacity, so memory stays
constant however long the text is.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from neuralchat_lite.errors import PromptError
from neuralchat_lite.families.architecture import Architecture
from neuralchat_lite.kernels.kv_format import KEY_BLOCK, KVFormat
from neuralchat_lite.kernels.layout import padded


class LayerKeysValues:
    """One layer's slots. See `kernels.kv_format.KVFormat` for the order in memory.

    prefill_block: positions that are written before the first of them is read
    """

    def __init__(
        self,
        architecture: Architecture,
        window: int | None,
        kv_format: KVFormat,
        prefill_block: int,
    ) -> None:
        self.window = window
        self.format = kv_format
        # While a block is written, its first query must still find its whole window. One more
        # key block keeps the newest and the oldest position out of the same 16 slots.
        self.ring = (
            None if window is None else padded(window + prefill_block, KEY_BLOCK) + KEY_BLOCK
        )
        self.heads = architecture.kv_heads, architecture.head_dim
        self.keys = torch.zeros(kv_format.keys_shape(*self.heads, 0), dtype=kv_format.dtype)
        self.values = torch.zeros(kv_format.values_shape(*self.heads, 0), dtype=kv_format.dtype)
        self.capacity = 0

    def reserve(self, positions: int) -> None:
        """Make room for positions 0 .. positions - 1."""
        wanted = padded(positions, KEY_BLOCK)
        if self.ring is not None:
            wanted = min(wanted, self.ring)
        if wanted <= self.capacity:
            return
        # Zeros, not empty memory: a masked slot meets a weight of 0, and 0 * NaN is NaN.
        keys = grown(self.keys, self.format.keys_shape(*self.heads, wanted))
        values = grown(self.values, self.format.values_shape(*self.heads, wanted))
        self.keys, self.values, self.capacity = keys, values, wanted

    def copy(self) -> LayerKeysValues:
        twin = copy(self)
        twin.keys, twin.values = self.keys.clone(), self.values.clone()
        return twin

    def keeps(self, length: int, written: int) -> bool:
        """Whether the layer can continue at `length` after `written` positions were written."""
        if self.window is None or written <= self.capacity:
            return True
        return written - self.capacity <= max(0, length - self.window + 1)


def grown(old: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A copy enlarged with zeros in dimension 1."""
    new = old.new_zeros(shape)
    new[:, : old.shape[1]] = old
    return new


class KVCache:
    """Keys and values of the tokens of one conversation. `Decoder.forward` fills it.

    A cache belongs to one conversation, and must not be used from two threads at once.

    capacity: positions to make room for at the start
    limit: the most positions that it may hold
    prefill_block: positions that go through the layers together, at most
    """

    def __init__(
        self,
        architecture: Architecture,
        kv_format: KVFormat,
        capacity: int,
        limit: int,
        prefill_block: int,
    ) -> None:
        self.length = 0  # positions filled in every layer
        self.written = 0  # positions ever written, also by interrupted calls or before truncating
        self.layers = [
            LayerKeysValues(architecture, window, kv_format, prefill_block)
            for window in architecture.windows
        ]
        self.limit = limit
        self.reserved = 0
        self.reserve(capacity)

    def reserve(self, positions: int) -> None:
        """Make room for `positions` in all. The room at least doubles, up to the limit, so that
        growing rarely copies."""
        assert positions <= self.limit
        if positions <= self.reserved:
            return
        positions = min(max(positions, 2 * self.reserved), self.limit)
        for layer in self.layers:
            layer.reserve(positions)
        self.reserved = positions

    def copy(self) -> KVCache:
        """A copy, for another conversation that starts with the same tokens."""
        twin = copy(self)
        twin.layers = [layer.copy() for layer in self.layers]
        return twin

    def can_truncate(self, length: int) -> bool:
        """Whether the conversation can go back to its first `length` positions.

        Always without a sliding window; with one, only while the ring still holds the window.
        """
        return 0 <= length <= self.length and all(
            layer.keeps(length, self.written) for layer in self.layers
        )

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` positions. Raises PromptError where it cannot."""
        if not self.can_truncate(length):
            raise PromptError(
                f"a cache of {self.length} positions cannot go back to {length}: "
                "its sliding window no longer holds the positions needed; start with a new cache"
            )
        self.length = length
