"""The key/value cache of a batch, with the interface that `generate` of transformers expects.

Each row is a sequence with its own cache (`models.kv_cache.KVCache`). Padding is never fed, so a
row of a batch is computed as if it were alone. transformers counts columns, including padding;
`real` says which columns hold tokens of a row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from neuralchat_lite.models.decoder import Decoder
from neuralchat_lite.models.kv_cache import KVCache


class NativeCache(Cache):
    """Keys and values of a batch, in the decoder's own memory layout.

    decoder: the decoder that fills the cache
    rows: one cache for each sequence of the batch; empty before the first call
    broken: true after an interrupted call that cannot be undone
    of_generate: whether `generate` has made it, so that nobody else sees it
    real: [batch, columns] bool, true where a row has a token and false where it has padding
    """

    is_compileable = False
    is_croppable = True
    is_initialized = True

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(layers=[])
        self.decoder = decoder
        self.rows: list[KVCache] = []
        self.real = torch.zeros((0, 0), dtype=torch.bool)
        self.broken = False
        self.of_generate = False

    def check_batch(self, size: int) -> None:
        if self.rows and size != len(self.rows):
            raise ValueError(
                f"the cache holds a batch of {len(self.rows)}, and the call has {size} rows: pass "
                "as many rows, or start with a new cache"
            )

    def grow(self, real: Tensor) -> None:
        """Add columns, [batch, new], before their tokens are fed."""
        if self.broken:
            raise ValueError(
                "a call was interrupted after a sliding window had moved, and the cache cannot go "
                "back: start with a new one"
            )
        if not self.rows:
            self.rows = [self.decoder.new_cache() for _ in range(len(real))]
            self.real = real.new_zeros((len(real), 0))
        self.real = torch.cat((self.real, real), dim=1)

    def crop(self, tokens: int) -> None:
        """Drop columns: with -n the last n, with n all after the first n (older transformers)."""
        columns = self.real.shape[1]
        kept = columns + tokens if tokens <= 0 else min(tokens, columns)
        if kept < 0:
            raise ValueError(
                f"the cache has {columns} columns and cannot drop {-tokens}: give at most {columns}"
            )
        lost = self.real[:, kept:].sum(dim=1).tolist()
        lengths = [row.length - count for row, count in zip(self.rows, lost, strict=True)]
        for row, length in zip(self.rows, lengths, strict=True):
            if not row.can_truncate(length):
                row.truncate(length)  # raises with the reason; no row has changed yet
        self.go_back(lengths, kept)

    def go_back(self, lengths: list[int], columns: int) -> None:
        """Return to these lengths of the rows and this number of columns."""
        self.broken = not all(map(KVCache.can_truncate, self.rows, lengths))
        if not self.broken:
            for row, length in zip(self.rows, lengths, strict=True):
                row.truncate(length)
        self.real = self.real[:, :columns]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order. A row that is selected twice is copied."""
        wanted = indices.tolist()
        kept: set[int] = set()
        rows = []
        for index in wanted:
            rows.append(self.rows[index].copy() if index in kept else self.rows[index])
            kept.add(index)
        self.rows = rows
        self.real = self.real[wanted]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(len(self.rows)).repeat_interleave(repeats))

    def reset(self) -> None:
        self.rows = []
        self.real = torch.zeros((0, 0), dtype=torch.bool)
        self.broken = False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.real.shape[1]

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return self.decoder.context_length

    def get_max_cache_shape(self, layer_idx: int | None = None) -> int:
        return self.decoder.context_length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def activate_past_recording(self) -> None:
        """Nothing to do: the cache can always go back over the tokens of the last call."""

    def update(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            "a NativeCache works with the native decoder only: pass it to a model of "
            "neuralchat_lite.transformers, not to one of transformers"
        )

    def __len__(self) -> int:
        return self.decoder.architecture.layers

    def __deepcopy__(self, memo: dict[int, Any]) -> NativeCache:
        """A second cache that holds the same tokens. It shares the decoder."""
        twin = NativeCache(self.decoder)
        twin.rows, twin.real = [row.copy() for row in self.rows], self.real.clone()
        twin.broken = self.broken
        return twin

    def __repr__(self) -> str:
        return f"NativeCache(batch={len(self.rows)}, columns={self.real.shape[1]})"

    @property
    def batch_size(self) -> int:
        return len(self.rows) or -1

    @property
    def is_sliding(self) -> list[bool]:
        return [window is not None for window in self.decoder.architecture.windows]

    @property
    def is_linear(self) -> list[bool]:
        return [False] * len(self)

    @property
    def is_dummy(self) -> list[bool]:
        return [False] * len(self)
