"""What happens to a loop of the core when one of its threads fails."""

from __future__ import annotations

import ctypes

import pytest
import torch

from neuralchat_lite.kernels import _native, native
from neuralchat_lite.kernels.native import NativeKernels

ITEMS = 10_000
FAILURES = {"memory": (MemoryError, None), "runtime": (RuntimeError, "an item of the loop failed")}


@pytest.fixture(params=[2, 3])
def threads(request):
    before = int(native.threads().value)
    native.set_threads(request.param)
    yield request.param
    native.set_threads(before)


def failing_loop(on_worker: bool, kind: str) -> int:
    """How many items of the loop have begun."""
    begun = ctypes.c_int64(0)
    error, message = FAILURES[kind]
    with pytest.raises(error, match=message):
        _native.run_failing_loop(ITEMS, on_worker, kind, ctypes.addressof(begun))
    return begun.value


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("on_worker", [True, False], ids=["worker", "caller"])
def test_an_exception_of_any_thread_reaches_python_and_ends_the_loop(threads, on_worker, kind):
    assert 2 <= failing_loop(on_worker, kind) < ITEMS


@pytest.mark.parametrize("on_worker", [True, False], ids=["worker", "caller"])
def test_operations_after_an_exception_give_the_same_bits(threads, on_worker):
    kernels = NativeKernels()
    x = torch.randn((3, 352), generator=torch.Generator().manual_seed(0))
    weights = torch.randn((600, 352), generator=torch.Generator().manual_seed(1))
    projection = kernels.projection([weights], [None], "fp32")
    want, got = torch.empty((3, 600)), torch.empty((3, 600))
    kernels.linear(x, projection, want)
    for _ in range(3):
        failing_loop(on_worker, "memory")
        kernels.linear(x, projection, got.zero_())
        assert torch.equal(got, want)


def test_each_thread_prepares_for_the_kernels_once(threads, isa):
    assert _native.count_preparations(5) == threads
