"""The operations of a decoder, as types. Two modules implement them.

`native` is the C++ core. `reference` is slow, obvious PyTorch, and the oracle in its tests. A
decoder layer is five operations: four projections with a norm, a gate or a residual sum fused in,
and attention with rotary embedding and cache write fused in. All layers are described once, as a
`Plan`, and run as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from neuralchat_lite.kernels.kv_format import KVFormat
from neuralchat_lite.kernels.layout import PackedMatrix
from neuralchat_lite.kernels.pages import PageTable

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
    def matrices(self) -> tuple[PackedMatrix | Tensor, ...]:
        """As they were given."""

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
    """What attention needs to know of one layer.

    window: positions that a query sees, itself included; None: all
    scale: of the scores, as a rule head_dim ** -0.5
    kv_format: of the keys and values in a page
    query_norm, key_norm: over head_dim, before the rotary embedding
    table: which of a sequence's page tables the layer uses
    page_layer: its number among the layers of a page
    """

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None
    scale: float
    kv_format: KVFormat
    query_norm: RMSNorm | None = None
    key_norm: RMSNorm | None = None
    table: int = 0
    page_layer: int = 0

    @property
    def qkv_size(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    def first_seen(self, position: int) -> int:
        """The first position that a query at `position` sees."""
        return 0 if self.window is None else max(0, position - self.window + 1)


@dataclass(frozen=True)
class Layer:
    """One block: x += output(attention(qkv(norm(x)))), then x += down(activation(gate) * up)."""

    attention_norm: RMSNorm
    qkv: Projection
    attention: AttentionShape
    output: Projection
    mlp_norm: RMSNorm
    gate_up: Projection
    activation: Activation  # of the gate
    down: Projection

    @property
    def projections(self) -> tuple[Projection, ...]:
        return self.qkv, self.output, self.gate_up, self.down

    @property
    def nbytes(self) -> int:
        return sum(projection.nbytes for projection in self.projections)


@dataclass(frozen=True)
class Plan:
    """A decoder from token ids to logits.

    embedding: [vocab, hidden] of any float type, or packed, copied nowhere
    norm, head: after the last layer
    """

    embedding: Tensor | PackedMatrix
    layers: tuple[Layer, ...]
    norm: RMSNorm
    head: Projection


@dataclass(frozen=True)
class Span:
    """The next tokens of one sequence: positions start .. start + count - 1.

    tables: its page tables, of which each layer uses one; these positions are reserved in all
    """

    count: int
    start: int
    tables: Sequence[PageTable]


@dataclass(frozen=True)
class Rotary:
    """The angles of each position, [positions, head_dim / 2] fp32 each."""

    cos: Tensor
    sin: Tensor


class Program(Protocol):
    """A plan, ready to run. Made by `Kernels.program`."""

    def __call__(
        self,
        ids: Tensor,
        spans: Sequence[Span],
        rotary: Rotary,
        wanted: Sequence[int],
        states: bool = False,
    ) -> Tensor:
        """Logits [len(wanted), vocab] fp32 of some of the rows; none are computed for the others.

        ids: [rows] int64, the tokens of all spans, one span after the other
        wanted: rows in ascending order
        states: in place of logits what the last norm gives, [len(wanted), hidden] fp32

        Writes the keys and values of the spans. A row gets the same bits whatever comes with it.
        """


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

    def program(self, plan: Plan) -> Program:
        """Prepare a plan, whose projections are from the same kernels."""

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
        spans: Sequence[Span],
        rotary: Rotary,
        shape: AttentionShape,
        out: Tensor,
    ) -> None:
        """Causal attention of new positions over those in the pages and themselves.

        qkv: [rows of all spans, (heads + 2 * kv_heads) * head_dim] fp32
        out: [rows, heads * head_dim] fp32

        Writes the new keys (rotated) and values into the pages.
        """
