"""Which instruction each kind of product is made of, and how fast it runs in registers alone."""

from __future__ import annotations

import pytest

from neuralchat_lite.kernels import _native, runtime
from neuralchat_lite.kernels.runtime import PRODUCTS

SETS = dict(_native.instruction_sets())


@pytest.mark.parametrize(("weights", "compute"), PRODUCTS)
def test_every_set_names_its_instruction_and_whose_kernel_it_is(
    isa: str, weights: str, compute: str
) -> None:
    found = runtime.product(weights, compute)
    assert found.instruction and SETS[found.set] == ""
    assert (found.why == "the set in use") == (found.set == isa)
    assert found.set == isa or f"as {isa} has no kernel" in found.why


def test_kernels_that_a_set_borrows_are_said_to_be_the_lenders() -> None:
    if "avx512_vnni" not in runtime.usable_isas():
        pytest.skip("this CPU lacks AVX-512 with VNNI")
    before = runtime.isa().value
    try:
        runtime.use_isa("avx512_vnni")
        assert runtime.product("int4", "int8").instruction == "vpdpbusd"
        assert runtime.product("int4", "int8").set == "avx512_vnni"
        borrowed = runtime.product("int4", "fp32")
        assert str(borrowed) == (
            "vfmadd231ps of avx2, as avx512_vnni has no kernel of its own for it"
        )
    finally:
        runtime.use_isa(before)


@pytest.mark.parametrize(("weights", "compute"), PRODUCTS)
def test_a_peak_is_what_a_cpu_can_do(isa: str, weights: str, compute: str) -> None:
    threads = int(runtime.threads().value)
    peak = runtime.measure_peak(weights, compute, seconds=0.001)
    # A loop that the compiler has computed in advance would be faster than any CPU: tiles of AMX,
    # the most there is, do 2048 operations in a cycle. A busy machine may be very slow.
    assert 1e6 < peak < threads * 2048 * 8e9
