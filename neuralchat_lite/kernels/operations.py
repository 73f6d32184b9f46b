"""The operations of a decoder, as types. Two modules implement them.

`native` is the C++ core. `reference` is slow, obvious PyTorch, and the oracle in its tests. A
decoder layer is five calls: four projections with a norm, a gate or a residual sum fused in, and
attention with rotary embedding and cache write fused in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from neuralchat_lite.kernels.kv_format import KVFormat
from neuralchat_lite.kernels.layout import PackedMatrix

ComputeDtype = Literal["bf16", "fp32", "int8"]
Activation = Literal["silu"]  # of a gate (SwiGLU, Shazeer 2020)
COMPUTE_DTYPES: tuple[ComputeDtype, ...] = ("bf16", "fp32", "int8")


class Projection(Protocol):
    """Matrices that share an input, stacked by output: q, k and v, or gate and up.

    Made by `Kernels.projection`; what is inside belongs to the implementation.
    """

    @property
    def rows(self) -> int:
        """Output rows of all matrices together."""

    @property
    def cols(self) -> int: ...

    @property
    def nbytes(self) -> int:
        """Bytes of weights that a product with a single row of activations reads."""


@dataclass(frozen=True)
class RMSNorm:
    """x * weight / sqrt(mean(x ** 2) + eps) (Zhang and Sennrich, 2019)."""

    weight: Tensor  # [cols] fp32
    eps: float


@dataclass(frozen=True)
class AttentionShape:
    """What attention needs to know of one layer."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None  # positions that a query sees, itself included; None: all
    scale: float  # of the scores: as a rule head_dim ** -0.5
    query_norm: RMSNorm | None = None  # over head_dim, before the rotary embedding
    key_norm: RMSNorm | None = None

    @property
    def qkv_size(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim


class LayerCache(Protocol):
    """Keys and values of one layer, [kv_heads, ...] in the order and the type of `format`.
    Position p lies in slot p % capacity."""

    format: KVFormat
    keys: Tensor
    values: Tensor
    capacity: int


class Kernels(Protocol):
    name: str

    def projection(
        self,
        matrices: Sequence[PackedMatrix | Tensor],
        biases: Sequence[Tensor | None],
        compute_dtype: ComputeDtype,
    ) -> Projection:
        """Prepare matrices ([rows, cols] when not packed) for `linear`. The native kernels copy
        no weight."""

    def linear(
        self,
        x: Tensor,
        projection: Projection,
        out: Tensor,
        *,
        norm: RMSNorm | None = None,
        gate: Activation | None = None,
        accumulate: bool = False,
    ) -> None:
        """out [m, rows] (+)= f(x) @ weights.T + bias, all fp32.

        f is the identity, `norm`, or with `gate` gate(x[:, :cols]) * x[:, cols:], where x is
        [m, 2 * cols]. The projection's compute_dtype sets the precision of the product.
        """

    def attention(
        self,
        qkv: Tensor,
        cache: LayerCache,
        start: int,
        cos: Tensor,
        sin: Tensor,
        shape: AttentionShape,
        out: Tensor,
    ) -> None:
        """Causal attention of m new positions start .. start + m - 1 over cache and themselves.

        qkv: [m, (heads + 2 * kv_heads) * head_dim] fp32; cos, sin: [positions, head_dim / 2]
        fp32, indexed by absolute position; out: [m, heads * head_dim] fp32. Writes the new keys
        (rotated) and values into the cache.
        """
