"""Pages of keys and values, and the table that leads a sequence from a position to its page.

Pages come when positions are written and go when nobody holds them. Tables that begin alike share
their pages; who writes into a shared one gets a copy of it first.
"""

from __future__ import annotations

import math
import mmap
from collections import deque
from collections.abc import Sequence
from typing import Any, NoReturn
from weakref import WeakSet

import torch
from torch import Tensor

from neuralchat_lite.kernels.kv_format import PAGE, KVFormat

SLAB_BYTES = 1 << 24


class Slab:
    """A mapping of its own, in which pages of one size lie. It goes back to the system with the
    last of them; memory of malloc would stay, with other things between the pages."""

    def __init__(self, nbytes: int) -> None:
        """nbytes: of a page"""
        count = max(1, SLAB_BYTES // nbytes)
        # Private: the child of a fork writes into a copy.
        mapping = mmap.mmap(-1, count * nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory = torch.frombuffer(mapping, dtype=torch.uint8)
        self.places = self.memory.view(count, nbytes)
        self.free = deque(range(count))  # pages may end in any thread


class Page:
    """Keys and values of PAGE positions, for all layers of a table.

    data: [layers, kv_heads, head_bytes] uint8, in the order of `KVFormat`; what was never written
        is undefined
    holders: who reads it, such as tables; only a single one may write into it
    """

    def __init__(self, slab: Slab, place: int, shape: Sequence[int]) -> None:
        self.slab, self.place = slab, place
        self.data = slab.places[place].view(*shape)
        self.holders: WeakSet[Any] = WeakSet()

    def __del__(self) -> None:
        self.slab.free.append(self.place)


class PagePool:
    """Makes the pages of several tables, and counts them as long as they live."""

    def __init__(self) -> None:
        self.living: dict[int, WeakSet[Page]] = {}  # bytes of a page -> pages
        self.slabs: dict[int, WeakSet[Slab]] = {}

    def new(self, shape: Sequence[int]) -> Page:
        nbytes = math.prod(shape)
        slabs = self.slabs.setdefault(nbytes, WeakSet())
        slab = next((slab for slab in slabs if slab.free), None) or Slab(nbytes)
        slabs.add(slab)
        page = Page(slab, slab.free.popleft(), shape)
        self.living.setdefault(nbytes, WeakSet()).add(page)
        return page

    def copy(self, data: Tensor) -> Page:
        """A page with this data."""
        page = self.new(data.shape)
        page.data.copy_(data)
        return page

    @property
    def count(self) -> int:
        """Pages of all tables and of others that hold some, each once."""
        return sum(map(len, self.living.values()))

    @property
    def nbytes(self) -> int:
        return sum(size * len(pages) for size, pages in self.living.items())


class PageTable:
    """The pages of one sequence for layers that see the same positions.

    addresses: [pages] int64, where each page begins; 0 where there is none
    """

    def __init__(
        self,
        kv_format: KVFormat,
        layers: int,
        kv_heads: int,
        head_dim: int,
        pool: PagePool | None = None,
    ) -> None:
        self.format = kv_format
        self.pool = PagePool() if pool is None else pool
        self.shape = layers, kv_heads, kv_format.head_bytes(head_dim)
        self.pages: list[Page | None] = []
        self.addresses = torch.zeros(16, dtype=torch.int64)
        self.own = 0  # positions from the last reserved one up to here lie in pages of its own

    @property
    def nbytes(self) -> int:
        """Bytes of its pages, also of those that it shares."""
        return sum(page.data.nbytes for page in self.pages if page is not None)

    def reserve(self, begin: int, end: int) -> None:
        """Make positions [begin, end) writable; those before keep what they hold."""
        if end <= self.own:
            return
        for index in range(begin // PAGE, -(-end // PAGE)):
            page = self.pages[index] if index < len(self.pages) else None
            if page is None:
                self.put(index, self.pool.new(self.shape))
            elif len(page.holders) > 1:
                self.put(index, self.pool.copy(page.data))
                page.holders.discard(self)
        self.own = -(-end // PAGE) * PAGE

    def bytes_for(self, begin: int, end: int) -> int:
        """Bytes of the pages that `reserve` would make."""
        if end <= self.own:
            return 0
        new = 0
        for index in range(begin // PAGE, -(-end // PAGE)):
            page = self.pages[index] if index < len(self.pages) else None
            new += page is None or len(page.holders) > 1
        return new * math.prod(self.shape)

    def put(self, index: int, page: Page | None) -> None:
        if index == len(self.addresses):
            self.addresses = torch.cat((self.addresses, torch.zeros_like(self.addresses)))
        if index == len(self.pages):
            self.pages.append(None)
        if page is not None:
            page.holders.add(self)
        self.pages[index] = page
        self.addresses[index] = 0 if page is None else page.data.data_ptr()

    def share(self) -> PageTable:
        """A table of the same pages, for another sequence that begins with the same tokens."""
        twin = PageTable.__new__(PageTable)
        twin.format, twin.shape, twin.pool = self.format, self.shape, self.pool
        twin.pages, twin.addresses = list(self.pages), self.addresses.clone()
        for page in twin.pages:
            if page is not None:
                page.holders.add(twin)
        self.own = twin.own = 0
        return twin

    def __deepcopy__(self, memo: object) -> PageTable:
        return self.share()

    def __reduce__(self) -> NoReturn:
        raise TypeError("pages of keys and values cannot be pickled: feed the tokens again")

    def drop_before(self, position: int) -> None:
        """Let go of pages that hold nothing from `position` on."""
        self.drop(range(min(position // PAGE, len(self.pages))))

    def drop_from(self, position: int) -> None:
        """Let go of pages that hold nothing before `position`."""
        kept = -(-position // PAGE)
        self.drop(range(kept, len(self.pages)))
        del self.pages[kept:]
        self.own = 0  # the last page may be shared

    def start_with(self, pages: Sequence[Page | None]) -> None:
        """Share the pages of another sequence that began with the same tokens. Its own must be
        none yet."""
        assert not self.pages
        for index, page in enumerate(pages):
            self.put(index, page)
        self.own = 0

    def drop(self, indices: range) -> None:
        for index in reversed(indices):
            page = self.pages[index]
            if page is None:  # nor are there any before: pages go from the front
                return
            page.holders.discard(self)
            self.put(index, None)

    def holds(self, begin: int, end: int) -> bool:
        """Whether it has pages for positions [begin, end)."""
        wanted = self.pages[begin // PAGE : -(-end // PAGE)]
        return len(wanted) == -(-end // PAGE) - begin // PAGE and None not in wanted
