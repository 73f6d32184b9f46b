"""Pages of keys and values of earlier sequences, for those that begin with the same tokens.

A page is known by the digest of all tokens up to its end. Those that nobody has asked for longest
go first.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

from neuralchat_lite.kernels.kv_format import PAGE
from neuralchat_lite.models.kv_cache import KVCache, Pages


class Kept:
    """The pages of the same positions, one of each table, which nobody may write into."""

    def __init__(self, pages: Pages) -> None:
        self.pages = pages
        for page in pages:
            if page is not None:
                page.holders.add(self)


class PrefixStore:
    """Full pages of the sequences of one decoder."""

    def __init__(self) -> None:
        # The one that was asked for last is last. Of a text the first page counts as the latest,
        # so that texts lose their ends first.
        self.kept: OrderedDict[bytes, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self.kept)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self.kept

    @property
    def freeable(self) -> int:
        """Bytes of pages that nobody else holds."""
        return sum(
            page.data.nbytes
            for kept in self.kept.values()
            for page in kept.pages
            if page is not None and len(page.holders) == 1
        )

    def keep(self, digests: Sequence[bytes], cache: KVCache) -> None:
        """Remember the pages that a cache holds.

        digests: of the full pages of its tokens, from the first on
        """
        for index, digest in reversed(list(enumerate(digests))):
            if digest in self.kept:
                self.kept.move_to_end(digest)
            else:
                self.kept[digest] = Kept(cache.pages_at(index))

    def find(self, digests: Sequence[bytes]) -> list[Pages]:
        """The pages of as many of the first digests as are known."""
        known = 0
        while known < len(digests) and digests[known] in self.kept:
            known += 1
        for digest in reversed(digests[:known]):
            self.kept.move_to_end(digest)
        return [self.kept[digest].pages for digest in digests[:known]]

    def drop_oldest(self) -> None:
        """Forget the page that nobody has asked for longest."""
        self.kept.popitem(last=False)

    def clear(self) -> None:
        self.kept.clear()


def page_digests(ids: Sequence[int], known: Sequence[bytes] = ()) -> list[bytes]:
    """For each full page of a text the digest of all tokens up to its end.

    known: those of its first pages
    """
    digests = list(known)
    for begin in range(len(digests) * PAGE, len(ids) // PAGE * PAGE, PAGE):
        before = digests[-1] if digests else b""
        tokens = array("q", ids[begin : begin + PAGE]).tobytes()
        digests.append(hashlib.blake2b(before + tokens, digest_size=16).digest())
    return digests
