"""Prompts that begin alike: the key/value cache of one is kept for the next.

Turns of a conversation and few-shot prompts repeat what was fed before. Only the tokens after
the part that both have in common go through the layers again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from neuralchat_lite.engines.engine import Decoder


class PrefixCache:
    """One key/value cache of a decoder, and the token ids that it is known to hold."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.cache = decoder.new_cache()
        self.ids: list[int] = []

    def go_back_to(self, ids: Sequence[int]) -> Any:
        """The cache, holding only what it has in common with `ids` before their last token, which
        is to be fed, as it gives the logits.

        A new cache takes its place where a sliding window has dropped what would be needed.
        """
        keep = min(common_prefix(self.ids, ids), len(ids) - 1)
        if self.cache.can_truncate(keep):
            self.cache.truncate(keep)
        else:
            self.cache = self.decoder.new_cache(len(ids))
        self.remember(ids)
        return self.cache

    def branch(self, ids: Sequence[int]) -> Any:
        """A copy of the cache that holds only what it has in common with `ids`, to be fed next."""
        keep = common_prefix(self.ids, ids)
        if not self.cache.can_truncate(keep):
            return self.decoder.new_cache(len(ids))
        twin = self.cache.copy()
        twin.truncate(keep)
        return twin

    def take(self, cache: Any, ids: Sequence[int]) -> None:
        """Go on from another cache, which was fed `ids` as far as it holds them."""
        self.cache = cache
        self.remember(ids)

    def remember(self, ids: Sequence[int]) -> None:
        """Say what was fed since: of `ids`, as many as the cache holds."""
        self.ids = list(ids[: self.cache.length])


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many ids at the beginning of both are the same."""
    pairs = enumerate(zip(left, right))  # noqa: B905 - the shorter one ends the prefix
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
