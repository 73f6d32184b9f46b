"""A Llama-shaped decoder, top to bottom: embedding, layers, norm, head.

The weights are shared and never written. All state is in a `KVCache`, one for each conversation.
So several threads may run conversations on one decoder: the native operations run one after the
other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralchat_lite.errors import PromptError
from neuralchat_lite.families.architecture import Architecture
from neuralchat_lite.kernels.interruption import between_blocks
from neuralchat_lite.kernels.kv_format import KV_FORMATS, KVFormat
from neuralchat_lite.kernels.leaving import at_work
from neuralchat_lite.kernels.operations import (
    Activation,
    AttentionShape,
    ComputeDtype,
    Kernels,
    Projection,
    RMSNorm,
)
from neuralchat_lite.models.kv_cache import KVCache
from neuralchat_lite.models.rope import RotaryTable
from neuralchat_lite.shortages import shortages

# The format of keys and values for each precision of activations.
KV_FORMAT_OF: dict[ComputeDtype, KVFormat] = {
    "bf16": KV_FORMATS["bf16"],
    "int8": KV_FORMATS["bf16"],
    "fp32": KV_FORMATS["fp32"],
}
PREFILL_BLOCK = 256  # positions that go through the layers together, by default


@dataclass(frozen=True)
class Layer:
    attention_norm: RMSNorm
    qkv: Projection
    attention: AttentionShape
    output: Projection
    mlp_norm: RMSNorm
    gate_up: Projection
    activation: Activation  # of the gate
    down: Projection

    @property
    def nbytes(self) -> int:
        return sum(p.nbytes for p in (self.qkv, self.output, self.gate_up, self.down))


@dataclass(frozen=True)
class Span:
    """The next tokens of one conversation, among those that go through the layers together."""

    cache: KVCache
    count: int


class Decoder:
    """Made by `build.load_decoder`."""

    def __init__(
        self,
        architecture: Architecture,
        kernels: Kernels,
        compute_dtype: ComputeDtype,
        context_length: int,
        embedding: Tensor,
        layers: Sequence[Layer],
        norm: RMSNorm,
        head: Projection,
        prefill_block: int = PREFILL_BLOCK,
    ) -> None:
        self.architecture = architecture
        self.kernels = kernels
        self.compute_dtype = compute_dtype
        self.context_length = context_length
        self.embedding = embedding
        self.layers = layers
        self.norm = norm
        self.head = head
        self.prefill_block = prefill_block
        self.kv_format = KV_FORMAT_OF[compute_dtype]
        self.rotary = RotaryTable(architecture)
        # What to do when logits are not finite; whoever opens the weights knows better.
        self.when_not_finite = "use weights that are finite, or compute_dtype='fp32'"

    @shortages()
    def new_cache(self, capacity: int = 256) -> KVCache:
        """An empty conversation with room for `capacity` positions; it grows when needed."""
        return KVCache(
            self.architecture,
            self.kv_format,
            min(capacity, self.context_length),
            self.context_length,
            self.prefill_block,
        )

    def forward(
        self, ids: Sequence[int] | Tensor, cache: KVCache, *, all_logits: bool = False
    ) -> Tensor:
        """Feed token ids after what the cache holds.

        Returns the fp32 logits of the last token, [vocab], or of each, [len(ids), vocab], with
        `all_logits`. Raises PromptError when there are no ids, when one is outside the
        vocabulary, or when they don't fit into the context; the cache is then unchanged.
        """
        [logits] = self.forward_batch([ids], [cache], keep=None if all_logits else 1)
        return logits if all_logits else logits[0]

    @shortages()
    def forward_batch(
        self,
        batch: Sequence[Sequence[int] | Tensor],
        caches: Sequence[KVCache],
        *,
        keep: int | None = 1,
    ) -> list[Tensor]:
        """Feed several conversations at once, so that the weights are read once for all of them.

        batch: token ids of each conversation, of any lengths; caches: one for each
        keep: number of last tokens whose logits are returned; None: all

        Returns for each conversation [min(keep, len(ids)), vocab] fp32 logits. Raises PromptError
        as `forward` does; all caches are then unchanged. Raises ResourceError when the system
        refuses memory or threads.
        """
        assert len(batch) == len(caches) == len(set(map(id, caches)))
        fed = [torch.as_tensor(ids) for ids in batch]
        for ids, cache in zip(fed, caches, strict=True):
            check_ids(ids, cache.length, self.context_length, self.architecture)
        fed = [ids.long() for ids in fed]  # uint8 would index as a mask
        for ids, cache in zip(fed, caches, strict=True):
            cache.reserve(cache.length + len(ids))
        with at_work():
            return self.feed(fed, caches, keep)

    def feed(
        self, fed: Sequence[Tensor], caches: Sequence[KVCache], keep: int | None
    ) -> list[Tensor]:
        """`forward_batch` of ids that fit."""
        logits: list[list[Tensor]] = [[] for _ in fed]
        for block in blocks([len(ids) for ids in fed], self.prefill_block):
            between_blocks()
            spans = [Span(caches[i], last - first) for i, first, last in block]
            x = self.run_layers(torch.cat([fed[i][first:last] for i, first, last in block]), spans)
            wanted, rows, begin = [], [], 0
            for i, first, last in block:
                skipped = 0 if keep is None else max(0, len(fed[i]) - keep - first)
                if skipped < last - first:
                    wanted.append((i, last - first - skipped))
                    rows.append(x[begin + skipped : begin + last - first])
                begin += last - first
            if rows:
                # A tensor of one part is not copied.
                found = self.project_to_vocabulary(rows[0] if len(rows) == 1 else torch.cat(rows))
                parts = torch.split(found, [count for _, count in wanted])
                for (i, _), part in zip(wanted, parts, strict=True):
                    logits[i].append(part)
        return [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in logits]

    def run_layers(self, ids: Tensor, spans: Sequence[Span]) -> Tensor:
        """[m] ids of all spans -> [m, hidden] activations before the last norm."""
        count, arch, kernels = len(ids), self.architecture, self.kernels
        cos, sin = self.rotary.upto(max(span.cache.length + span.count for span in spans))
        x = self.embedding[ids].float()
        qkv = x.new_empty((count, arch.query_size + 2 * arch.kv_size))
        heads = x.new_empty((count, arch.query_size))
        gate_up = x.new_empty((count, 2 * arch.intermediate_size))
        sizes = [span.count for span in spans]
        parts = list(zip(spans, torch.split(qkv, sizes), torch.split(heads, sizes), strict=True))
        for span in spans:
            span.cache.written = max(span.cache.written, span.cache.length + span.count)
        for index, layer in enumerate(self.layers):
            kernels.linear(x, layer.qkv, qkv, norm=layer.attention_norm)
            for span, own_qkv, own_heads in parts:
                kept, start = span.cache.layers[index], span.cache.length
                kernels.attention(own_qkv, kept, start, cos, sin, layer.attention, own_heads)
            kernels.linear(heads, layer.output, x, accumulate=True)
            kernels.linear(x, layer.gate_up, gate_up, norm=layer.mlp_norm)
            kernels.linear(gate_up, layer.down, x, gate=layer.activation, accumulate=True)
        for span in spans:
            span.cache.length += span.count
        return x

    def project_to_vocabulary(self, x: Tensor) -> Tensor:
        logits = x.new_empty((len(x), self.architecture.vocab_size))
        self.kernels.linear(x, self.head, logits, norm=self.norm)
        return logits

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that decoding one token reads: every matrix once."""
        return sum(layer.nbytes for layer in self.layers) + self.head.nbytes

    def bytes_per_token(self, context: int) -> int:
        """Bytes that decoding one token at position `context` reads: weights, keys, values."""
        arch = self.architecture
        seen = sum(min(context, window or context) for window in arch.windows)
        position = self.kv_format.bytes_per_position(arch.kv_heads, arch.head_dim)
        return self.weight_bytes + seen * position


def blocks(lengths: Sequence[int], size: int) -> Iterator[list[tuple[int, int, int]]]:
    """Cut texts of these lengths into blocks of at most `size` tokens in all.

    A block is a list of (text, first token, one past its last token), each text once.
    """
    block: list[tuple[int, int, int]] = []
    room = size
    for text, length in enumerate(lengths):
        first = 0
        while first < length:
            last = min(length, first + room)
            block.append((text, first, last))
            room -= last - first
            first = last
            if room == 0:
                yield block
                block, room = [], size
    if block:
        yield block


def check_ids(ids: Tensor, length: int, context_length: int, arch: Architecture) -> None:
    """Raises PromptError unless the ids can be fed after `length` positions."""
    if ids.ndim != 1 or len(ids) == 0:
        raise PromptError(
            f"token ids must be a non-empty list, got shape {tuple(ids.shape)}: "
            "give at least one token"
        )
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise PromptError(
            f"token ids must be integers, got {ids.dtype}: give the ids of a tokenizer"
        )
    if length + len(ids) > context_length:
        larger = f", or load with a larger context_length (this model allows {arch.max_positions})"
        raise PromptError(
            f"{length} tokens in the cache and {len(ids)} new ones exceed the context "
            f"of {context_length}: shorten the prompt"
            + (larger if context_length < arch.max_positions else "")
        )
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= arch.vocab_size:
        raise PromptError(
            f"token id {low if low < 0 else high} is outside the vocabulary of "
            f"{arch.vocab_size}: use the model's own tokenizer"
        )
