"""Keys and values of one conversation: preallocated, growing on demand, a window kept as a ring.

A layer that sees everything has a slot for each position. A layer with a sliding window has
only so many slots as the window and one prefill block need, and position p takes slot
p % capacity, so that memory stays constant however long the text.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from neuralchat_lite.errors import PromptError
from neuralchat_lite.families.architecture import Architecture
from neuralchat_lite.kernels.layout import padded
from neuralchat_lite.kernels.operations import KEY_BLOCK

PREFILL_BLOCK = 256  # positions that go through the layers together


class LayerKeysValues:
    """One layer's slots. See `kernels.operations.LayerCache` for the order in memory."""

    def __init__(self, architecture: Architecture, window: int | None, dtype: torch.dtype) -> None:
        self.window = window
        # While a block is written, its first query must still find its whole window. One more
        # key block keeps the newest and the oldest position out of the same 16 slots.
        self.ring = (
            None if window is None else padded(window + PREFILL_BLOCK, KEY_BLOCK) + KEY_BLOCK
        )
        kv_heads, dim = architecture.kv_heads, architecture.head_dim
        self.keys = torch.zeros((kv_heads, 0, dim, KEY_BLOCK), dtype=dtype)
        self.values = torch.zeros((kv_heads, 0, dim), dtype=dtype)
        self.capacity = 0

    def reserve(self, positions: int) -> None:
        """Make room for positions 0 .. positions - 1."""
        wanted = padded(positions, KEY_BLOCK)
        if self.ring is not None:
            wanted = min(wanted, self.ring)
        if wanted <= self.capacity:
            return
        # Zeros, not empty memory: a masked slot meets a weight of 0, and 0 * NaN is NaN.
        keys = grown(self.keys, wanted // KEY_BLOCK)
        values = grown(self.values, wanted)
        self.keys, self.values, self.capacity = keys, values, wanted

    def copy(self) -> LayerKeysValues:
        twin = copy(self)
        twin.keys, twin.values = self.keys.clone(), self.values.clone()
        return twin

    def keeps(self, length: int, written: int) -> bool:
        """Can the layer go on at `length`, positions up to `written` having been written?"""
        if self.window is None or written <= self.capacity:
            return True
        return written - self.capacity <= max(0, length - self.window + 1)


def grown(old: Tensor, size: int) -> Tensor:
    """A copy with dimension 1 enlarged to `size`."""
    new = old.new_zeros((old.shape[0], size, *old.shape[2:]))
    new[:, : old.shape[1]] = old
    return new


class KVCache:
    """What a conversation has said, as keys and values. `Decoder.forward` fills it.

    A cache belongs to one conversation, and must not be used from two threads at once.
    """

    def __init__(
        self, architecture: Architecture, dtype: torch.dtype, capacity: int, limit: int
    ) -> None:
        self.length = 0  # positions filled in every layer
        self.written = 0  # positions ever written, also by what was interrupted or taken back
        self.layers = [LayerKeysValues(architecture, w, dtype) for w in architecture.windows]
        self.limit = limit
        self.reserved = 0
        self.reserve(capacity)

    def reserve(self, positions: int) -> None:
        """Make room for so many positions in all, doubling so that growth costs little, but
        never beyond the limit."""
        assert positions <= self.limit
        if positions <= self.reserved:
            return
        positions = min(max(positions, 2 * self.reserved), self.limit)
        for layer in self.layers:
            layer.reserve(positions)
        self.reserved = positions

    def copy(self) -> KVCache:
        """Another conversation that has said the same so far."""
        twin = copy(self)
        twin.layers = [layer.copy() for layer in self.layers]
        return twin

    def can_truncate(self, length: int) -> bool:
        """Can the conversation go back to its first `length` positions?

        Always without a sliding window; with one, only as far as the ring still reaches.
        """
        return 0 <= length <= self.length and all(
            layer.keeps(length, self.written) for layer in self.layers
        )

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` positions. Raises PromptError where it cannot."""
        if not self.can_truncate(length):
            raise PromptError(
                f"a cache of {self.length} positions cannot go back to {length}: "
                "its sliding window has dropped what would be needed; start with a new cache"
            )
        self.length = length
