"""A Llama-shaped decoder: blocks of tokens through a plan, from ids to logits.

The weights are shared and never written. All state is in a `KVCache`, one for each conversation.
So several threads may run conversations on one decoder: the native operations run one after the
other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized

import torch
from torch import Tensor

from neuralchat_lite.errors import PromptError
from neuralchat_lite.families.architecture import Architecture
from neuralchat_lite.families.rope import RotaryTable
from neuralchat_lite.kernels.interruption import between_blocks
from neuralchat_lite.kernels.kv_format import KV_FORMATS, KVFormat
from neuralchat_lite.kernels.layout import PackedMatrix
from neuralchat_lite.kernels.leaving import at_work
from neuralchat_lite.kernels.operations import ComputeDtype, Kernels, Plan, Rotary, Span
from neuralchat_lite.kernels.pages import PagePool
from neuralchat_lite.models.kv_cache import KVCache
from neuralchat_lite.shortages import shortages

# The format of keys and values for each precision of activations, unless another is asked for.
KV_FORMAT_OF: dict[ComputeDtype, KVFormat] = {
    "bf16": KV_FORMATS["bf16"],
    "int8": KV_FORMATS["bf16"],
    "fp32": KV_FORMATS["fp32"],
}
# Of how many last tokens logits are wanted: for all texts alike, for each, or of all tokens.
Keep = int | Sequence[int] | None
PREFILL_BLOCK = 256  # positions that go through the layers together, by default


class Decoder:
    """Made by `build.load_decoder`."""

    def __init__(
        self,
        architecture: Architecture,
        kernels: Kernels,
        compute_dtype: ComputeDtype,
        context_length: int,
        plan: Plan,
        kv_format: KVFormat,
        prefill_block: int = PREFILL_BLOCK,
    ) -> None:
        self.architecture = architecture
        self.kernels = kernels
        self.compute_dtype = compute_dtype
        self.context_length = context_length
        self.plan = plan
        self.program = kernels.program(plan)
        self.prefill_block = prefill_block
        self.kv_format = kv_format
        self.rotary = RotaryTable(architecture)
        self.pool = PagePool()  # counts the pages of all its caches
        # What to do when logits are not finite; whoever opens the weights knows better.
        self.when_not_finite = "use weights that are finite, or compute_dtype='fp32'"

    @shortages()
    @at_work()
    def new_cache(self, capacity: int = 256) -> KVCache:
        """An empty conversation. Memory comes when it is needed, whatever `capacity` says."""
        return KVCache(
            self.architecture,
            self.kv_format,
            self.context_length,
            slack=self.prefill_block,
            pool=self.pool,
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
    @at_work()
    def forward_batch(
        self,
        batch: Sequence[Sequence[int] | Tensor],
        caches: Sequence[KVCache],
        *,
        keep: Keep = 1,
    ) -> list[Tensor]:
        """Feed several conversations at once, so that the weights are read once for all of them.

        batch: token ids of each conversation, of any lengths; caches: one for each
        keep: number of last tokens whose logits are returned, for all or for each; None: all

        Returns for each conversation [min(keep, len(ids)), vocab] fp32 logits. Raises PromptError
        as `forward` does; all caches are then unchanged. Raises ResourceError when the system
        refuses memory or threads; the caches then hold the blocks that went before.
        """
        fed = self.checked(batch, caches)
        return self.feed(fed, caches, kept_of(keep, fed))

    @shortages()
    @at_work()
    def hidden_states(
        self, batch: Sequence[Sequence[int] | Tensor], caches: Sequence[KVCache]
    ) -> list[Tensor]:
        """Feed several conversations as `forward_batch` does, without the head.

        Returns for each conversation what the last norm gives of each token, [len(ids), hidden]
        fp32. Raises what `forward_batch` raises.
        """
        fed = self.checked(batch, caches)
        return self.feed(fed, caches, kept_of(None, fed), states=True)

    def checked(
        self, batch: Sequence[Sequence[int] | Tensor], caches: Sequence[KVCache]
    ) -> list[Tensor]:
        """Ids that fit into their caches, int64. Raises PromptError."""
        assert len(batch) == len(caches) == len(set(map(id, caches)))
        fed = [torch.as_tensor(ids) for ids in batch]
        for ids, cache in zip(fed, caches, strict=True):
            check_ids(ids, cache.length, self.context_length, self.architecture)
        return [ids.long() for ids in fed]  # uint8 would index as a mask

    def feed(
        self,
        fed: Sequence[Tensor],
        caches: Sequence[KVCache],
        keep: Sequence[int],
        states: bool = False,
    ) -> list[Tensor]:
        """`forward_batch` or `hidden_states` of ids that fit."""
        results: list[list[Tensor]] = [[] for _ in fed]
        for block in blocks([len(ids) for ids in fed], self.prefill_block):
            between_blocks()
            counts = [last - first for _, first, last in block]
            # Of each text the last `keep` tokens, as far as they are in this block.
            skipped = [
                min(last, max(first, len(fed[i]) - keep[i])) - first for i, first, last in block
            ]
            wanted: list[int] = []
            begin = 0
            for count, skip in zip(counts, skipped, strict=True):
                wanted += range(begin + skip, begin + count)
                begin += count
            ids = torch.cat([fed[i][first:last] for i, first, last in block])
            found = self.run_block(ids, [caches[i] for i, _, _ in block], counts, wanted, states)
            kept = [count - skip for count, skip in zip(counts, skipped, strict=True)]
            for (i, _, _), part in zip(block, torch.split(found, kept), strict=True):
                if len(part):
                    results[i].append(part)
        return [
            parts[0]
            if len(parts) == 1
            else torch.cat(parts or [torch.empty(0, self.architecture.vocab_size)])
            for parts in results
        ]

    def run_block(
        self,
        ids: Tensor,
        caches: Sequence[KVCache],
        counts: Sequence[int],
        wanted: Sequence[int],
        states: bool,
    ) -> Tensor:
        """Logits [len(wanted), vocab] of rows `wanted` of one block, or `states` [.., hidden].

        ids: [rows], of all caches one after the other; counts: how many are of each
        """
        for cache, count in zip(caches, counts, strict=True):
            cache.reserve(count)
        spans = [
            Span(count, cache.length, cache.tables)
            for cache, count in zip(caches, counts, strict=True)
        ]
        rotary = Rotary(*self.rotary.upto(max(span.start + span.count for span in spans)))
        found = self.program(ids, spans, rotary, wanted, states)
        for cache, count in zip(caches, counts, strict=True):
            cache.length += count
        return found

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that decoding one token reads: every matrix once."""
        return sum(layer.nbytes for layer in self.plan.layers) + self.plan.head.nbytes

    @property
    def table_bytes(self) -> int:
        """Bytes of the embedding, 0 when the head is the same matrix. Decoding a token reads one of
        its rows, which `weight_bytes` leaves out."""
        table = self.plan.embedding
        shared = address(table) in map(address, self.plan.head.matrices)
        return 0 if shared else table.nbytes

    def bytes_per_token(self, context: int) -> int:
        """Bytes that decoding one token at position `context` reads: weights, keys, values."""
        arch = self.architecture
        seen = sum(min(context, window or context) for window in arch.windows)
        position = self.kv_format.bytes_per_position(arch.kv_heads, arch.head_dim)
        return self.weight_bytes + seen * position


def kept_of(keep: Keep, fed: Sequence[Sized]) -> Sequence[int]:
    """For each text, of how many of its last tokens the logits are wanted."""
    if keep is None:
        return [len(ids) for ids in fed]
    return [keep] * len(fed) if isinstance(keep, int) else keep


def address(matrix: PackedMatrix | Tensor) -> int:
    """Where the memory of a matrix begins."""
    return (matrix.codes if isinstance(matrix, PackedMatrix) else matrix).data_ptr()


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
