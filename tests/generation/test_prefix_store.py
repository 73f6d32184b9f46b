"""Pages that are remembered."""

from __future__ import annotations

from typing import Any

from neuralchat_lite.generation.prefix_store import PrefixStore, page_digests
from neuralchat_lite.kernels.kv_format import PAGE
from neuralchat_lite.kernels.pages import Page, PagePool


class Cache:
    """Has a page for every index."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.pool = PagePool()

    def pages_at(self, index: int) -> tuple[Page]:
        self.asked.append(index)
        return (self.pool.new([8]),)


def test_a_page_is_known_by_all_tokens_up_to_its_end() -> None:
    text = list(range(3 * PAGE + 5))
    digests = page_digests(text)
    assert len(digests) == len(set(digests)) == 3
    assert page_digests(text[: 2 * PAGE]) == digests[:2]
    assert page_digests(text, digests[:1]) == digests
    other = [9, *text[1:]]
    assert not set(page_digests(other)) & set(digests)
    assert page_digests(text[PAGE:])[0] != digests[1]


def test_only_a_chain_from_the_first_page_on_is_found() -> None:
    store, cache = PrefixStore(), Cache()
    digests = page_digests(list(range(3 * PAGE)))
    store.keep(digests[:2], cache)  # type: ignore[arg-type]
    assert len(store.find(digests)) == 2
    assert store.find([b"other", *digests]) == []
    assert len(store.find([digests[0], b"other", digests[1]])) == 1
    store.keep(digests, cache)  # type: ignore[arg-type]
    assert sorted(cache.asked) == [0, 1, 2], "what is known is not kept again"


def test_what_nobody_has_asked_for_longest_goes_first_and_texts_lose_their_ends() -> None:
    store, cache = PrefixStore(), Cache()
    old, new = page_digests(list(range(2 * PAGE))), page_digests(list(range(9, 9 + 2 * PAGE)))
    store.keep(old, cache)  # type: ignore[arg-type]
    store.keep(new, cache)  # type: ignore[arg-type]
    store.find(old)
    lengths: list[Any] = []
    while len(store):
        store.drop_oldest()
        known = [sum(digest in store for digest in digests) for digests in (new, old)]
        assert [len(store.find(digests)) for digests in (new, old)] == known
        lengths.append(known)
    assert lengths[0] == [1, 2]


def test_a_page_that_is_remembered_has_a_holder_more() -> None:
    store, cache = PrefixStore(), Cache()
    store.keep(page_digests(list(range(PAGE))), cache)  # type: ignore[arg-type]
    [[pages]] = [store.find(page_digests(list(range(PAGE))))]
    page = pages[0]
    assert page is not None and len(page.holders) == 1 and store.freeable == 8
    reader = Cache()
    page.holders.add(reader)
    assert store.freeable == 0
    del reader
    store.clear()
    assert len(page.holders) == 0
