"""Every native kernel against its slow oracle, on every instruction set that this CPU has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.kernels import native, runtime
from neuralchat_lite.kernels.cpu import check_threads
from neuralchat_lite.kernels.kv_format import KV_FORMATS
from neuralchat_lite.kernels.layout import dequantize
from neuralchat_lite.kernels.native import NativeKernels
from neuralchat_lite.kernels.operations import AttentionShape, RMSNorm
from neuralchat_lite.kernels.reference import ReferenceKernels

from ..patience import patience

# (rows, cols): a whole tile, ragged tiles, ragged groups, the shared models' widths, more panels
# than one, more tiles than one item.
SHAPES = [(16, 32), (1, 1), (17, 33), (64, 172), (40, 352), (50, 1100), (600, 64)]
STORAGE = [
    (weight_dtype, group_size, scheme)
    for weight_dtype in ("int4", "int8")
    for group_size in (32, 64, 128, -1)
    for scheme in ("sym", "asym")
]


def product(matrix, x, compute_dtype, bias=None):
    kernels = NativeKernels()
    out = torch.full((len(x), matrix.shape[0] if hasattr(matrix, "shape") else matrix.rows), 7.0)
    kernels.linear(x, kernels.projection([matrix], [bias], compute_dtype), out)
    return out


def bf16_matmul(x, weights):
    return x.bfloat16() @ weights.bfloat16().T


@pytest.mark.parametrize(("weight_dtype", "group_size", "scheme"), STORAGE)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_as_precise_as_their_compute_dtype(
    isa, packed, sqnr, shape, weight_dtype, group_size, scheme
):
    matrix = packed(*shape, weight_dtype, group_size, scheme)
    weights = dequantize(matrix, torch.float64)
    for count in (1, 2, 5):
        x = torch.randn((count, shape[1]), generator=torch.Generator().manual_seed(count))
        want = x.double() @ weights.T
        assert sqnr(want, product(matrix, x, "fp32")) >= 100
        bf16 = sqnr(want, product(matrix, x, "bf16"))
        assert bf16 >= sqnr(want, bf16_matmul(x, weights))
        if shape[1] > 1:  # of one value, 8 bits keep the exact largest
            assert sqnr(want, product(matrix, x, "int8")) >= 35


@pytest.mark.parametrize("weight_dtype", ["int4", "int8"])
@pytest.mark.parametrize("compute_dtype", ["bf16", "fp32", "int8"])
def test_rows_1_to_17_each_get_the_product_that_they_get_alone(
    isa, packed, sqnr, weight_dtype, compute_dtype
):
    matrix = packed(50, 1100, weight_dtype, 64, "asym")
    x = torch.randn((17, 1100), generator=torch.Generator().manual_seed(0))
    alone = torch.cat([product(matrix, row[None], compute_dtype) for row in x])
    want = x.double() @ dequantize(matrix, torch.float64).T
    bar = {"bf16": 80, "fp32": 100, "int8": 35}[compute_dtype]
    for rows in range(1, 18):
        together = product(matrix, x[:rows], compute_dtype)
        assert sqnr(want[:rows], together) >= bar
        assert sqnr(alone[:rows], together) >= 120  # the same but for the order of additions


# Sets that give a row the same operations in the same order, whatever comes with it.
EXACT = {"amx", "avx512_vnni"}


@pytest.mark.parametrize(("weight_dtype", "group_size", "scheme"), STORAGE)
@pytest.mark.parametrize("compute_dtype", ["bf16", "int8"])
def test_a_row_has_the_same_bits_alone_and_in_company(
    isa, packed, weight_dtype, group_size, scheme, compute_dtype
):
    if isa not in EXACT:
        pytest.skip(f"{isa} adds the blocks of one row in another order")
    matrix = packed(50, 1100, weight_dtype, group_size, scheme)
    x = torch.randn((80, 1100), generator=torch.Generator().manual_seed(0))
    alone = torch.cat([product(matrix, row[None], compute_dtype) for row in x])
    for rows in (*range(1, 18), 33, 64, 65, 80):
        assert torch.equal(alone[:rows], product(matrix, x[:rows], compute_dtype))


@pytest.mark.parametrize("scale_dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("weight_dtype", ["int4", "int8"])
def test_every_scale_dtype_is_read_exactly(isa, packed, sqnr, weight_dtype, scale_dtype):
    matrix = packed(33, 96, weight_dtype, 32, "sym", scale_dtype)
    if scale_dtype == "fp16":
        matrix.scales[0, 0, :4] = torch.tensor([6e-8, 65504.0, 1e-5, 0.0])  # subnormal, largest
    for rows in (1, 3):
        x = torch.randn((rows, 96), generator=torch.Generator().manual_seed(0))
        want = x.double() @ dequantize(matrix, torch.float64).T
        for column in range(33):  # column by column: one large scale must not hide the others
            assert sqnr(want[:, column], product(matrix, x, "fp32")[:, column]) >= 100 or (
                want[:, column].abs().max() == 0
            )


def test_outliers_cost_no_more_than_they_do_in_bf16(isa, packed, sqnr):
    matrix = packed(64, 512, "int4", 32)
    weights = dequantize(matrix, torch.float64)
    x = torch.randn((4, 512), generator=torch.Generator().manual_seed(0))
    x[:, ::37] *= 300
    want = x.double() @ weights.T
    for rows in (1, 4):
        got = sqnr(want[:rows], product(matrix, x[:rows], "bf16"))
        assert got >= sqnr(want[:rows], bf16_matmul(x[:rows], weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_unquantized_products_are_fp32(isa, sqnr, shape, dtype):
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    for count in (1, 2, 5):
        x = torch.randn((count, shape[1]), generator=torch.Generator().manual_seed(count))
        want = x.double() @ weights.double().T
        for compute_dtype in ("fp32", "bf16"):
            assert sqnr(want, product(weights, x, compute_dtype)) >= 100


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("compute_dtype", ["bf16", "fp32", "int8"])
def test_nan_and_infinity_come_out_of_the_row_that_held_them(isa, packed, compute_dtype, bad, rows):
    for matrix in (packed(40, 172), packed(40, 172, "int8", 64, "asym"), torch.randn(40, 172)):
        x = torch.randn((rows, 172))
        x[rows // 2, 77] = bad
        out = product(matrix, x, compute_dtype)
        good = torch.arange(rows) != rows // 2
        assert out[good].isfinite().all()
        # A code of zero hides a NaN from nobody: 0 * NaN is NaN.
        assert not out[rows // 2].isfinite().any() or isinstance(matrix, torch.Tensor)
        assert not out[rows // 2].isfinite().all()


def test_zero_and_tiny_activations_give_zero_and_no_nan(isa, packed):
    matrix = packed(40, 172)
    for value in (0.0, 1e-42):
        for rows in (1, 2):
            out = product(matrix, torch.full((rows, 172), value), "bf16")
            assert out.isfinite().all() and out.abs().max() <= 1e-38


def linear_case(packed, kind):
    generator = torch.Generator().manual_seed(3)
    matrices = {
        "packed": [packed(48, 96, seed=1), packed(17, 96, "int8", 64, "asym", seed=2)],
        "mixed": [packed(48, 96, seed=1), torch.randn((17, 96), generator=generator).bfloat16()],
    }[kind]
    biases = [torch.randn(48, generator=generator).bfloat16(), None]
    return matrices, biases


@pytest.mark.parametrize("kind", ["packed", "mixed"])
@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("fused", ["plain", "norm", "swiglu"])
@pytest.mark.parametrize("accumulate", [False, True])
def test_linear_fuses_norm_swiglu_bias_and_residual(
    isa, packed, sqnr, kind, rows, fused, accumulate
):
    matrices, biases = linear_case(packed, kind)
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn((rows, 96 * (2 if fused == "swiglu" else 1)), generator=generator)
    norm = RMSNorm(torch.rand(96, generator=generator), 1e-5) if fused == "norm" else None
    results = []
    for kernels in (ReferenceKernels(), NativeKernels()):
        out = torch.ones((rows, 65))
        projection = kernels.projection(matrices, biases, "fp32")
        assert (projection.rows, projection.cols) == (65, 96)
        kernels.linear(
            x,
            projection,
            out,
            norm=norm,
            gate="silu" if fused == "swiglu" else None,
            accumulate=accumulate,
        )
        results.append(out)
    assert sqnr(*results) >= 110


class Cache:
    def __init__(self, kv_heads, capacity, dim, dtype):
        self.format = next(f for f in KV_FORMATS.values() if f.dtype == dtype)
        self.keys = torch.zeros((kv_heads, capacity // 16, dim, 16), dtype=dtype)
        self.values = torch.zeros((kv_heads, capacity, dim), dtype=dtype)
        self.capacity = capacity


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "window"),
    [(8, 4, 8, None), (6, 1, 16, None), (4, 4, 20, None), (7, 7, 64, 9), (8, 2, 128, 40)],
)
@pytest.mark.parametrize("normed", [False, True])
def test_attention_matches_the_reference_block_after_block(
    isa, sqnr, heads, kv_heads, dim, window, dtype, normed
):
    generator = torch.Generator().manual_seed(dim)
    norms = [
        RMSNorm(torch.rand(dim, generator=generator), 1e-6) if normed else None for _ in range(2)
    ]
    shape = AttentionShape(heads, kv_heads, dim, window, dim**-0.5, *norms)
    blocks = [1, 5, 33, 1, 1, 150, 1, 2]  # prefill and decode, across chunks and around the ring
    capacity = 208 if window is None else 208 - 16
    caches = [Cache(kv_heads, capacity, dim, dtype) for _ in range(2)]
    if window is not None:
        for cache in caches:  # what an earlier conversation may have left
            cache.keys.fill_(float("nan"))
            cache.values.fill_(float("nan"))
    angles = torch.rand((256, dim // 2), generator=generator) * 6
    start = 0
    for count in blocks:
        qkv = torch.randn((count, shape.qkv_size), generator=generator)
        outs = [torch.empty((count, heads * dim)) for _ in range(2)]
        for kernels, cache, out in zip(
            (ReferenceKernels(), NativeKernels()), caches, outs, strict=True
        ):
            kernels.attention(qkv, cache, start, angles.cos(), angles.sin(), shape, out)
        assert sqnr(*outs) >= (110 if dtype == torch.float32 else 60)
        start += count
    assert start > capacity or window is None
    written = caches[0].values.isfinite()
    assert torch.equal(caches[0].values[written], caches[1].values[written])


def test_a_nan_key_reaches_every_query_that_sees_it(isa):
    shape = AttentionShape(2, 1, 16, None, 0.25)
    cache, out = Cache(1, 32, 16, torch.float32), torch.empty((3, 32))
    qkv = torch.randn((3, shape.qkv_size))
    qkv[1, 32:48] = float("nan")  # the key of the second position
    NativeKernels().attention(qkv, cache, 0, torch.ones(3, 8), torch.zeros(3, 8), shape, out)
    assert out[0].isfinite().all()
    assert out[1:].isnan().all()


def test_a_nan_value_reaches_only_the_queries_that_see_it(isa):
    shape = AttentionShape(2, 1, 16, 3, 0.25)
    cache, out = Cache(1, 48, 16, torch.float32), torch.empty((9, 32))
    qkv = torch.randn((9, shape.qkv_size))
    qkv[4, 48:] = float("nan")  # the value of position 4: 4, 5 and 6 see it
    NativeKernels().attention(qkv, cache, 0, torch.ones(9, 8), torch.zeros(9, 8), shape, out)
    seen = torch.tensor([4, 5, 6])
    assert out[seen].isnan().all()
    assert out[[row for row in range(9) if row not in seen]].isfinite().all()


def test_a_child_forked_while_threads_are_being_set_can_set_its_own():
    # Another thread holds the lock of the settings at the moment of the fork.
    with runtime._setup_lock:
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # it would wait for ever
            native.threads()
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_system_without_threads_is_an_error_and_no_abort():
    code = """
import resource, torch
from neuralchat_lite.kernels import native
kernels = native.NativeKernels()
native.set_threads(1024)
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28), -1))  # room for 32 stacks of 8 MB
projection = kernels.projection([torch.ones(64, 2048)], [None], "fp32")
try:
    kernels.linear(torch.ones(64, 2048), projection, torch.empty(64, 64))
except RuntimeError as error:
    print("refused:", error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(60)
    )
    assert run.returncode == 0, run.stderr
    assert "refused" in run.stdout


def test_very_different_scores_do_not_overflow(isa, sqnr):
    shape = AttentionShape(4, 2, 16, None, 0.25)
    qkv = torch.randn((40, shape.qkv_size), generator=torch.Generator().manual_seed(0)) * 60
    outs = []
    for kernels in (ReferenceKernels(), NativeKernels()):
        out = torch.empty((40, 64))
        cache = Cache(2, 48, 16, torch.float32)
        kernels.attention(qkv, cache, 0, torch.ones(40, 8), torch.zeros(40, 8), shape, out)
        outs.append(out)
    assert sqnr(*outs) >= 100


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_threads_gives_the_same_bits(packed, count):
    matrix, x = packed(600, 352), torch.randn((3, 352), generator=torch.Generator().manual_seed(0))
    before = int(native.threads().value)
    try:
        native.set_threads(1)
        want = product(matrix, x, "bf16")
        native.set_threads(count)
        assert torch.equal(product(matrix, x, "bf16"), want)
    finally:
        native.set_threads(before)


def test_calls_from_several_threads_do_not_mix(packed):
    kernels = NativeKernels()
    cases = []
    for seed in range(4):
        matrix = packed(200, 352, seed=seed)
        x = torch.randn((1 + seed, 352), generator=torch.Generator().manual_seed(seed))
        cases.append((kernels.projection([matrix], [None], "bf16"), x, product(matrix, x, "bf16")))
    wrong = []

    def work(projection, x, want):
        out = torch.empty_like(want)
        for _ in range(200):
            kernels.linear(x, projection, out)
            if not torch.equal(out, want):
                wrong.append(len(x))

    workers = [threading.Thread(target=work, args=case) for case in cases]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_a_forked_process_computes_with_threads_of_its_own(packed):
    matrix, x = packed(200, 352), torch.randn((1, 352))
    want = product(matrix, x, "bf16")
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(product(matrix, x, "bf16"), want) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_measured_bandwidth_is_that_of_memory_and_not_of_a_cache():
    assert 1e9 < native.measure_bandwidth(0.05, size=1 << 28) < 1e12


def test_impossible_thread_counts_and_instruction_sets_are_refused():
    for count in (0, -1, 100000, 2.0, True):
        with pytest.raises(ConfigError, match=f"threads must be an integer from 1.*got {count}"):
            check_threads(count, "threads")
    with pytest.raises(ConfigError, match=r"isa=mmx cannot be used .*choose one of"):
        native.use_isa("mmx")
