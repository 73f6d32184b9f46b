"""How keys and values are stored: element type, bytes, and the place of a position in its page.

csrc/ops/kv_format.cpp has the same table for the core, csrc/kernels/kv_layout.h the same order in
memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.values import shown

PAGE = 64  # positions of a page
KEY_BLOCK = 16  # positions whose keys lie side by side


@dataclass(frozen=True)
class KVFormat:
    """One format of keys and values. Position p has slot p % PAGE of its page.

    Of each kv head a page holds, one after the other:

    keys:   [PAGE / 16, head_dim, 16], so that a product with 16 positions is made of whole vectors
            and needs no horizontal sum
    values: [PAGE, head_dim]
    scales: int8 alone: of the keys [PAGE] and of the values [PAGE], bf16. A key is its integers
            times its scale, which is the largest element / 127, and NaN where one is not finite.

    dtype: of the elements of keys and values
    """

    name: str
    dtype: torch.dtype

    @property
    def has_scales(self) -> bool:
        return self.dtype == torch.int8

    def bytes_per_position(self, kv_heads: int, head_dim: int) -> int:
        """Bytes of the key and the value of one position in one layer."""
        scale = torch.bfloat16.itemsize if self.has_scales else 0
        return 2 * kv_heads * (head_dim * self.dtype.itemsize + scale)

    def head_bytes(self, head_dim: int) -> int:
        """Bytes of one kv head in a page."""
        return PAGE * self.bytes_per_position(1, head_dim)

    def write(self, heads: Tensor, slot: int, keys: Tensor, values: Tensor) -> None:
        """Store keys and values, [kv_heads, head_dim] fp32, in a slot of [kv_heads, head_bytes]."""
        dim = keys.shape[1]
        keys, key_scales = self.stored(keys)
        values, value_scales = self.stored(values)
        self.keys_in(heads, dim)[:, slot // KEY_BLOCK, :, slot % KEY_BLOCK] = keys
        self.values_in(heads, dim)[:, slot] = values
        if self.has_scales:
            self.scales_in(heads, dim)[:, :, slot] = torch.stack((key_scales, value_scales), dim=1)

    def read(self, heads: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """All keys and values of [kv_heads, head_bytes], each [kv_heads, PAGE, head_dim] fp32."""
        keys = self.keys_in(heads, dim).float().transpose(2, 3).flatten(1, 2)
        values = self.values_in(heads, dim).float()
        if not self.has_scales:
            return keys, values
        scales = self.scales_in(heads, dim).float()
        return keys * scales[:, 0, :, None], values * scales[:, 1, :, None]

    def stored(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[kv_heads, head_dim] as it is stored, and scales [kv_heads]: 1 where there are none."""
        if not self.has_scales:
            return x.to(self.dtype), x.new_ones(len(x))
        largest = x.abs().amax(dim=1)
        largest[~x.isfinite().all(dim=1)] = float("nan")
        scales = (largest / 127).bfloat16()
        inverse = 1 / scales.float()
        inverse[~inverse.isfinite()] = 0
        integers = torch.where(inverse[:, None] == 0, 0, (x * inverse[:, None]).round())
        return integers.clamp(-127, 127).to(torch.int8), scales

    # Views of [kv_heads, head_bytes].

    def keys_in(self, heads: Tensor, dim: int) -> Tensor:
        size = PAGE * dim * self.dtype.itemsize
        return heads[:, :size].view(self.dtype).view(-1, PAGE // KEY_BLOCK, dim, KEY_BLOCK)

    def values_in(self, heads: Tensor, dim: int) -> Tensor:
        size = PAGE * dim * self.dtype.itemsize
        return heads[:, size : 2 * size].view(self.dtype).view(-1, PAGE, dim)

    def scales_in(self, heads: Tensor, dim: int) -> Tensor:
        """[kv_heads, 2, PAGE]: of the keys and of the values."""
        begin = 2 * PAGE * dim * self.dtype.itemsize
        return heads[:, begin:].view(torch.bfloat16).view(-1, 2, PAGE)


KV_FORMATS = {
    kv_format.name: kv_format
    for kv_format in (
        KVFormat("bf16", torch.bfloat16),
        KVFormat("fp32", torch.float32),
        KVFormat("int8", torch.int8),
    )
}


def kv_format_of(dtype: object) -> KVFormat:
    """The format of a name or a torch dtype. Raises ConfigError."""
    for kv_format in KV_FORMATS.values():
        torch_name = str(kv_format.dtype)
        if str(dtype) in (kv_format.name, torch_name, torch_name.removeprefix("torch.")):
            return kv_format
    raise ConfigError(
        f"kv_cache_dtype must be one of {', '.join(map(repr, KV_FORMATS))}, got {shown(dtype)}: "
        "leave it out for the precision that belongs to the compute_dtype"
    )
