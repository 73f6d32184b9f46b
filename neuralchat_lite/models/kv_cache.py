"""Keys and values of one conversation: pages that come with its tokens and go behind its windows.

Layers that see the same positions share a table of pages. Behind a sliding window, pages are let
go, so memory stays constant however long the text is.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

from neuralchat_lite.errors import PromptError
from neuralchat_lite.families.architecture import Architecture
from neuralchat_lite.kernels.kv_format import PAGE, KVFormat
from neuralchat_lite.kernels.pages import Page, PagePool, PageTable

Pages = tuple[Page | None, ...]  # of the same positions, one of each table


def kinds_of(windows: Sequence[int | None]) -> list[int | None]:
    """The different windows, in the order of their first layers: one page table for each."""
    return list(dict.fromkeys(windows))


def place_of(layer: int, windows: Sequence[int | None]) -> tuple[int, int]:
    """The table of a layer, and its number among the layers of a page."""
    window = windows[layer]
    return kinds_of(windows).index(window), list(windows[:layer]).count(window)


class KVCache:
    """Keys and values of the tokens of one conversation. `Decoder.forward` fills it.

    A cache belongs to one conversation, and must not be used from two threads at once.

    length: positions that every layer holds
    limit: the most positions that it may hold
    slack: positions kept behind a window, so that the conversation can go back as far
    """

    def __init__(
        self,
        architecture: Architecture,
        kv_format: KVFormat,
        limit: int,
        slack: int,
        pool: PagePool | None = None,
    ) -> None:
        """pool: counts its pages"""
        self.length = 0
        self.limit = limit
        self.slack = slack
        windows, heads = architecture.windows, (architecture.kv_heads, architecture.head_dim)
        self.windows = kinds_of(windows)
        self.tables = [
            PageTable(kv_format, windows.count(window), *heads, pool) for window in self.windows
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of its pages, also of those that it shares with copies."""
        return sum(table.nbytes for table in self.tables)

    def reserve(self, count: int) -> None:
        """Make room for the next `count` positions."""
        end = self.length + count
        assert end <= self.limit
        for window, table in zip(self.windows, self.tables, strict=True):
            if window is not None:
                table.drop_before(first_seen(self.length, window) - self.slack)
            table.reserve(self.length, end)

    def bytes_for(self, count: int) -> int:
        """Bytes of the pages that `reserve` would make, at most."""
        end = self.length + count
        return sum(table.bytes_for(self.length, end) for table in self.tables)

    def pages_at(self, index: int) -> Pages:
        """The pages of positions [index * PAGE, (index + 1) * PAGE), which are all filled."""
        assert (index + 1) * PAGE <= self.length
        return tuple(table.pages[index] for table in self.tables)

    def start_with(self, shared: Sequence[Pages]) -> int:
        """Begin this conversation, which is empty, with pages of others that began alike.

        shared: what `pages_at` gave for pages 0, 1, ... of others
        Returns how many positions it holds now: fewer where those of a window are gone.
        """
        assert self.length == 0
        count = len(shared)
        while count and not all(
            all(pages[table] is not None for pages in shared[first:count])
            for table, first in enumerate(self.first_pages(count * PAGE))
        ):
            count -= 1
        firsts = self.first_pages(count * PAGE)
        for i, (first, table) in enumerate(zip(firsts, self.tables, strict=True)):
            table.start_with([None] * first + [pages[i] for pages in shared[first:count]])
        self.length = count * PAGE
        return self.length

    def first_pages(self, length: int) -> list[int]:
        """For each table the first page that a query at position `length` reads."""
        return [
            0 if window is None else first_seen(length, window) // PAGE for window in self.windows
        ]

    def copy(self) -> KVCache:
        """A copy, for another conversation that starts with the same tokens. It shares their pages
        until one of the two writes."""
        twin = copy(self)
        twin.tables = [table.share() for table in self.tables]
        return twin

    def __deepcopy__(self, memo: object) -> KVCache:
        return self.copy()

    def can_truncate(self, length: int) -> bool:
        """Whether the conversation can go back to its first `length` positions.

        Always without a sliding window; with one, only while it holds what the next token sees.
        """
        return 0 <= length <= self.length and all(
            window is None or table.holds(first_seen(length, window), length)
            for window, table in zip(self.windows, self.tables, strict=True)
        )

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` positions. Raises PromptError where it cannot."""
        if not self.can_truncate(length):
            raise PromptError(
                f"a cache of {self.length} positions cannot go back to {length}: "
                "its sliding window no longer holds the positions needed; start with a new cache"
            )
        for table in self.tables:
            table.drop_from(length)
        self.length = length


def first_seen(position: int, window: int) -> int:
    """The first position that a query at `position` sees."""
    return max(0, position - window + 1)
