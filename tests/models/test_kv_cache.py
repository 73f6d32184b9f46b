"""Pages of keys and values come when they are needed, go behind a window, and are shared."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest

from neuralchat_lite.families.config_json import parse_architecture
from neuralchat_lite.kernels.kv_format import KV_FORMATS, PAGE
from neuralchat_lite.models.kv_cache import KVCache, place_of


def fed(cache: KVCache, count: int) -> KVCache:
    cache.reserve(count)
    cache.length += count
    return cache


@pytest.fixture
def arch(tiny_config):
    return parse_architecture(tiny_config)


@pytest.mark.parametrize("name", KV_FORMATS)
def test_a_cache_takes_the_bytes_that_its_format_says(arch, name):
    cache = KVCache(arch, KV_FORMATS[name], limit=1000, slack=16)
    assert cache.nbytes == 0
    position = KV_FORMATS[name].bytes_per_position(arch.kv_heads, arch.head_dim)
    for count, pages in ((1, 1), (PAGE - 1, 1), (1, 2), (3 * PAGE, 5)):
        assert fed(cache, count).nbytes == pages * PAGE * position * arch.layers


def test_growing_copies_nothing(arch):
    cache = fed(KVCache(arch, KV_FORMATS["fp32"], limit=10_000, slack=16), PAGE)
    before = list(cache.tables[0].pages)
    fed(cache, 5_000)
    table = cache.tables[0]
    assert table.pages[:1] == before
    wanted = [page.data.data_ptr() for page in table.pages]
    assert table.addresses[: len(wanted)].tolist() == wanted


def test_a_window_lets_pages_go_that_it_has_left_behind(arch):
    arch = replace(arch, windows=(100,) * arch.layers)
    cache = KVCache(arch, KV_FORMATS["bf16"], limit=10_000, slack=32)
    most = 0
    for _ in range(2000):
        fed(cache, 3)
        held = [page is not None for page in cache.tables[0].pages]
        most = max(most, sum(held))
        assert all(held[max(0, cache.length - 100) // PAGE :])
    assert most <= (100 + 32) // PAGE + 2
    assert cache.tables[0].addresses[: len(held)].bool().tolist() == held


def test_layers_with_the_same_window_share_a_table(arch):
    windows = (None, 20, None, 20, 7)
    assert [place_of(layer, windows) for layer in range(5)] == [
        (0, 0),
        (1, 0),
        (0, 1),
        (1, 1),
        (2, 0),
    ]


def test_copies_share_pages_until_one_of_them_writes(arch):
    cache = fed(KVCache(arch, KV_FORMATS["fp32"], limit=1000, slack=16), 2 * PAGE + 10)
    for page in cache.tables[0].pages:
        page.data.fill_(1)
    twin = cache.copy()
    pages, twins = cache.tables[0].pages, twin.tables[0].pages
    assert all(ours is theirs for ours, theirs in zip(pages, twins, strict=True))
    fed(twin, 1)
    assert [ours is theirs for ours, theirs in zip(pages, twins, strict=True)] == [
        True,
        True,
        False,
    ]
    assert twins[2].data.equal(pages[2].data)
    last = pages[2]
    fed(cache, 1)  # no one else holds its last page any more
    assert pages[2] is last


def test_a_deep_copy_shares_pages_too_and_a_pickle_is_refused(arch):
    cache = fed(KVCache(arch, KV_FORMATS["fp32"], limit=1000, slack=16), 10)
    twin = copy.deepcopy({"cache": cache})["cache"]
    assert twin.tables[0].pages[0] is cache.tables[0].pages[0]
    fed(twin, 1)
    assert twin.tables[0].pages[0] is not cache.tables[0].pages[0]
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(cache)


def test_who_goes_back_into_a_shared_page_does_not_write_into_it(arch):
    cache = fed(KVCache(arch, KV_FORMATS["fp32"], limit=1000, slack=16), 2 * PAGE)
    twin = cache.copy()
    fed(cache, 1)
    cache.truncate(10)
    fed(cache, 1)
    assert cache.tables[0].pages[0] is not twin.tables[0].pages[0]
    del twin
    first = cache.tables[0].pages[0]
    cache.truncate(5)
    assert fed(cache, 1).tables[0].pages[0] is first
