"""How keys and values are stored: element type, bytes, and the place of a position.

csrc/ops/kv_format.cpp has the same table for the core, csrc/kernels/kv_layout.h the same order in
memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

KEY_BLOCK = 16  # positions whose keys lie side by side; a capacity is a multiple of it


@dataclass(frozen=True)
class KVFormat:
    """One format of a cache. Position p has slot p % capacity.

    keys:   [kv_heads, capacity / 16, head_dim, 16], so that a product with 16 positions is made
            of whole vectors and needs no horizontal sum
    values: [kv_heads, capacity, head_dim]
    """

    name: str
    dtype: torch.dtype  # of the elements of both

    def keys_shape(self, kv_heads: int, head_dim: int, capacity: int) -> tuple[int, int, int, int]:
        assert capacity % KEY_BLOCK == 0
        return kv_heads, capacity // KEY_BLOCK, head_dim, KEY_BLOCK

    def values_shape(self, kv_heads: int, head_dim: int, capacity: int) -> tuple[int, int, int]:
        return kv_heads, capacity, head_dim

    def bytes_per_position(self, kv_heads: int, head_dim: int) -> int:
        """Bytes of the key and the value of one position in one layer."""
        return 2 * kv_heads * head_dim * self.dtype.itemsize


KV_FORMATS = {
    kv_format.name: kv_format
    for kv_format in (KVFormat("bf16", torch.bfloat16), KVFormat("fp32", torch.float32))
}
