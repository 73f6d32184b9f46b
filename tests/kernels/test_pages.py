"""The memory of pages of keys and values."""

from __future__ import annotations

import gc
import os

import psutil
import pytest

from neuralchat_lite.kernels.pages import SLAB_BYTES, Page, PagePool


def private() -> int:
    gc.collect()
    return int(psutil.Process().memory_full_info().uss)


@pytest.mark.parametrize("size", [4096, 3 * 5 * 1000, SLAB_BYTES + 5])
def test_pages_lie_apart_and_their_memory_is_used_again(size: int) -> None:
    pool = PagePool()
    pages = [pool.new([1, size]) for _ in range(20)]
    for number, page in enumerate(pages):
        page.data.fill_(number)
    assert all(bool((page.data == number).all()) for number, page in enumerate(pages))
    assert (pool.count, pool.nbytes) == (20, 20 * size)
    slabs = sum(map(len, pool.slabs.values()))
    del pages[5:15], page
    pages += [pool.new([1, size]) for _ in range(10)]
    assert sum(map(len, pool.slabs.values())) == slabs
    assert len({page.data.data_ptr() for page in pages}) == 20
    pages.clear()
    assert pool.count == sum(map(len, pool.slabs.values())) == 0


def test_memory_goes_back_to_the_system_whatever_lies_between_the_pages() -> None:
    pool = PagePool()
    pool.new([1, 1000]).data.fill_(1)
    before, kept, between = private(), list[Page](), []
    for number in range(200):
        kept.append(pool.new([7, 1 << 17]))
        kept[-1].data.fill_(number)
        between.append(bytearray(1 << 16))
    assert private() - before > 150e6
    kept.clear()
    assert private() - before < 5e6 + sum(map(len, between))


def test_the_child_of_a_fork_writes_into_a_copy() -> None:
    page = PagePool().copy(PagePool().new([2, 3]).data.fill_(7))
    child = os.fork()
    if child == 0:
        page.data.fill_(9)
        os._exit(0)
    os.waitpid(child, 0)
    assert page.data.tolist() == [[7] * 3] * 2
