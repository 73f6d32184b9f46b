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
from neuralchat_lite.kernels.kv_format import KV_FORMATS, PAGE
from neuralchat_lite.kernels.layout import dequantize, pack_codes, unpack_codes, unpack_groups
from neuralchat_lite.kernels.native import NativeKernels
from neuralchat_lite.kernels.operations import AttentionShape, RMSNorm, Rotary, Span
from neuralchat_lite.kernels.pages import PageTable
from neuralchat_lite.kernels.reference import ReferenceKernels

from ..patience import patience

# (rows, cols): a whole tile, ragged tiles, ragged groups, the shared models' widths, more panels
# than one, more tiles than one item.
SHAPES = [(16, 32), (1, 1), (17, 33), (64, 172), (40, 352), (50, 1100), (600, 64)]
STORAGE = [
    (weight_dtype, group_size, scheme)
    for weight_dtype in ("int4", "int8")
    for group_size in (32, 64, 128, -1)
    for scheme in ("sym", "asym", "affine", "affine8")
    if not (scheme == "affine8" and weight_dtype == "int8")
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
@pytest.mark.parametrize("scheme", ["asym", "affine"])
def test_rows_1_to_17_each_get_the_product_that_they_get_alone(
    isa, packed, sqnr, weight_dtype, compute_dtype, scheme
):
    matrix = packed(50, 1100, weight_dtype, 64, scheme)
    x = torch.randn((17, 1100), generator=torch.Generator().manual_seed(0))
    alone = torch.cat([product(matrix, row[None], compute_dtype) for row in x])
    want = x.double() @ dequantize(matrix, torch.float64).T
    bar = {"bf16": 80, "fp32": 100, "int8": 35}[compute_dtype]
    for rows in range(1, 18):
        together = product(matrix, x[:rows], compute_dtype)
        assert sqnr(want[:rows], together) >= bar
        assert sqnr(alone[:rows], together) >= 120  # the same but for the order of additions


@pytest.mark.parametrize(("weight_dtype", "group_size", "scheme"), STORAGE)
@pytest.mark.parametrize("compute_dtype", ["bf16", "int8", "fp32"])
def test_a_row_has_the_same_bits_alone_and_in_company(
    isa, packed, weight_dtype, group_size, scheme, compute_dtype
):
    matrix = packed(50, 1100, weight_dtype, group_size, scheme)
    x = torch.randn((80, 1100), generator=torch.Generator().manual_seed(0))
    alone = torch.cat([product(matrix, row[None], compute_dtype) for row in x])
    for rows in (*range(1, 18), 31, 32, 33, 64, 65, 80):
        assert torch.equal(alone[:rows], product(matrix, x[:rows], compute_dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cols", [64, 173])
def test_a_row_of_an_unquantized_product_has_the_same_bits_alone_and_in_company(isa, dtype, cols):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn((50, cols), generator=generator).to(dtype)
    x = torch.randn((33, cols), generator=generator)
    alone = torch.cat([product(matrix, row[None], "bf16") for row in x])
    for rows in range(1, 34):
        assert torch.equal(alone[:rows], product(matrix, x[:rows], "bf16"))


def products_by_isa(matrix, x, compute_dtype):
    """The same product on every instruction set that runs here; the last one is generic."""
    before, results = native.isa().value, {}
    try:
        for name in native.usable_isas():
            native.use_isa(name)
            results[name] = product(matrix, x, compute_dtype, torch.arange(matrix.rows) / 7)
    finally:
        native.use_isa(before)
    return results


@pytest.mark.parametrize("scale_dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize(("weight_dtype", "group_size", "scheme"), STORAGE)
@pytest.mark.parametrize("compute_dtype", ["bf16", "int8"])
def test_integer_products_have_the_same_bits_on_every_instruction_set(
    packed, weight_dtype, group_size, scheme, scale_dtype, compute_dtype
):
    # The last shape has more blocks than a panel, and ragged groups and tiles.
    for shape, counts in (((1, 1), (1, 9)), ((17, 33), range(1, 34)), ((40, 1100), (1, 5, 33))):
        matrix = packed(*shape, weight_dtype, group_size, scheme, scale_dtype)
        x = torch.randn((33, shape[1]), generator=torch.Generator().manual_seed(1))
        x *= torch.linspace(-12, 12, 33).exp()[:, None]  # blocks of every size
        x[7, :33] = 1e-42  # subnormal
        for rows in counts:
            results = products_by_isa(matrix, x[:rows], compute_dtype)
            want = results.pop("generic")
            for name, got in results.items():
                assert torch.equal(got, want), name


@pytest.mark.parametrize("compute_dtype", ["bf16", "int8"])
@pytest.mark.parametrize("weight_dtype", ["int4", "int8"])
def test_the_largest_codes_and_activations_overflow_on_no_instruction_set(
    packed, weight_dtype, compute_dtype
):
    codes, zeros = {"int4": ((0, 15), (15, 0)), "int8": ((-128, 127), (127, -128))}[weight_dtype]
    for scheme in ("sym", "asym", "affine"):
        for code, zero in zip(codes, zeros, strict=True):
            matrix = packed(40, 128, weight_dtype, 64, scheme)
            packed_code = code * 17 if weight_dtype == "int4" else code % 256
            matrix.codes.view(torch.uint8).fill_(packed_code)
            if matrix.zeros is not None:
                matrix.zeros.fill_(zero)
            x = torch.ones((20, 128))
            x[1::3] = -1
            x[2::3, ::2] = -1  # signs within a pair
            for rows in (1, 20):
                results = products_by_isa(matrix, x[:rows], compute_dtype)
                want = results.pop("generic")
                assert want.isfinite().all()
                for name, got in results.items():
                    assert torch.equal(got, want), name


def blocks_of_integers(x, limit):
    """Integers [rows, blocks, 32] and scales [rows, blocks] of activations, as kernels.h says."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[1] % 32)).view(len(x), -1, 32)
    largest = padded.abs().amax(-1)
    inverse = torch.where(largest > 0, limit / largest, 0.0)
    integers = (padded * inverse[..., None]).round().clamp(-limit, limit)
    return integers.to(torch.int64), largest / limit


def fma(a, b, c):
    """One rounding to fp32: 24 by 24 bits are exact in fp64, and a sum in fp64 is rounded twice
    alike unless it lies within 2 ** -29 of a tie."""
    return (a.double() * b.double() + c.double()).float()


@pytest.mark.parametrize("compute_dtype", ["bf16", "int8"])
@pytest.mark.parametrize("weight_dtype", ["int4", "int8"])
def test_affine_products_add_the_minima_times_the_sum_of_each_block(
    isa, packed, weight_dtype, compute_dtype
):
    matrix = packed(40, 172, weight_dtype, 64, "affine")
    x = torch.randn((33, 172), generator=torch.Generator().manual_seed(2))
    integers, scales = blocks_of_integers(x, {"bf16": 32639, "int8": 127}[compute_dtype])
    codes = torch.nn.functional.pad(unpack_codes(matrix.codes, weight_dtype, 40, 172), (0, 20))
    codes = codes.view(40, -1, 32).to(torch.int64)
    weight_scales, minima = (
        unpack_groups(part, 40).float() for part in (matrix.scales, matrix.minima)
    )
    want = torch.zeros((33, 40))
    for block in range(codes.shape[1]):
        dots = (integers[:, block] @ codes[:, block].T).float()
        sums = integers[:, block].sum(-1).float() * scales[:, block]
        scale = scales[:, block, None]
        want = fma(dots * scale, weight_scales[:, block // 2], want)
        want = fma(sums[:, None], minima[:, block // 2], want)
    for rows in (1, 3, 33):
        assert torch.equal(product(matrix, x[:rows], compute_dtype), want[:rows])


@pytest.mark.parametrize("compute_dtype", ["bf16", "int8", "fp32"])
def test_padding_of_an_affine_matrix_adds_nothing(isa, packed, compute_dtype):
    matrix = packed(17, 33, "int4", 32, "affine")
    x = torch.randn((20, 33), generator=torch.Generator().manual_seed(0))
    want = product(matrix, x, compute_dtype)
    codes = torch.full((32, 64), 15, dtype=torch.int8)  # of padding, too
    codes[:17, :33] = unpack_codes(matrix.codes, "int4", 17, 33)
    matrix.codes.copy_(pack_codes(codes, "int4"))
    assert torch.equal(product(matrix, x, compute_dtype), want)


@pytest.mark.parametrize("compute_dtype", ["bf16", "int8", "fp32"])
@pytest.mark.parametrize("weight_dtype", ["int4", "int8"])
def test_thousands_of_rows_have_the_bits_that_each_has_alone(
    isa, packed, weight_dtype, compute_dtype
):
    matrix = packed(33, 40, weight_dtype)
    x = torch.randn((2000, 40), generator=torch.Generator().manual_seed(0))
    together = product(matrix, x, compute_dtype)
    for row in (0, 191, 192, 700, 1279, 1999):
        assert torch.equal(product(matrix, x[row : row + 1], compute_dtype)[0], together[row])


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


def pages_for(shape: AttentionShape, layers: int = 1) -> PageTable:
    return PageTable(shape.kv_format, layers, shape.kv_heads, shape.head_dim)


def attend(kernels, shape, table, start, qkv, angles):
    """New positions of one sequence: [count, heads * head_dim]."""
    count = len(qkv)
    table.reserve(start, start + count)
    out = torch.full((count, shape.heads * shape.head_dim), 7.0)
    span = Span(count, start, [table])
    kernels.attention(qkv, [span], Rotary(angles.cos(), angles.sin()), shape, out)
    return out


# What the dot products and the softmax of a set may differ in from PyTorch, in dB.
ATTENTION_SQNR = {"fp32": 110, "bf16": 60, "int8": 60}


@pytest.mark.parametrize("kv_format", KV_FORMATS.values(), ids=list(KV_FORMATS))
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "window"),
    [
        (8, 4, 8, None),
        (6, 1, 16, None),
        (4, 4, 20, None),
        (7, 7, 64, 9),
        (8, 2, 128, 40),
        (3, 1, 24, 300),
    ],
)
@pytest.mark.parametrize("normed", [False, True])
def test_attention_matches_the_reference_block_after_block(
    isa, sqnr, heads, kv_heads, dim, window, kv_format, normed
):
    generator = torch.Generator().manual_seed(dim)
    norms = [
        RMSNorm(torch.rand(dim, generator=generator), 1e-6) if normed else None for _ in range(2)
    ]
    shape = AttentionShape(
        heads, kv_heads, dim, window, dim**-0.5, kv_format, *norms, table=0, page_layer=1
    )
    # Prefill and decode, across chunks, pages and segments.
    blocks = [1, 5, 33, 1, 1, 150, 1, 2, 300, 1, 40, 1]
    tables = [pages_for(shape, layers=3) for _ in range(2)]
    angles = torch.rand((600, dim // 2), generator=generator) * 6
    start = 0
    for count in blocks:
        qkv = torch.randn((count, shape.qkv_size), generator=generator)
        for table in tables:
            table.reserve(start, start + count)
            if window is not None:
                table.drop_before(start - window + 1)
        outs = [
            attend(kernels, shape, table, start, qkv, angles)
            for kernels, table in zip((ReferenceKernels(), NativeKernels()), tables, strict=True)
        ]
        assert sqnr(*outs) >= ATTENTION_SQNR[kv_format.name]
        start += count
    for position in range(start if window is None else start - window, start):
        ours, theirs = (
            [part[:, position % PAGE] for part in kv_format.read(page.data[1], dim)]
            for page in (table.pages[position // PAGE] for table in tables)
        )
        if not normed:  # rotated by the same products; norms round in another order
            assert all(map(torch.equal, ours, theirs))


def test_what_a_page_held_before_is_nowhere_seen(isa, sqnr):
    for kv_format in KV_FORMATS.values():
        shape = AttentionShape(4, 2, 16, 20, 0.25, kv_format)
        outs = []
        for poison in (0, 255):  # bytes of NaN in each format
            table = pages_for(shape)
            table.reserve(0, 100)
            for page in table.pages:
                page.data.fill_(poison)
            generator = torch.Generator().manual_seed(0)
            outs.append(
                torch.cat(
                    [
                        attend(NativeKernels(), shape, table, start, qkv, torch.zeros(100, 8))
                        for start in range(0, 100, 25)
                        for qkv in [torch.randn((25, shape.qkv_size), generator=generator)]
                    ]
                )
            )
        assert torch.equal(*outs) and outs[0].isfinite().all()


@pytest.mark.parametrize("kv_format", KV_FORMATS.values(), ids=list(KV_FORMATS))
@pytest.mark.parametrize(
    ("heads", "kv_heads", "window"), [(3, 3, None), (8, 2, 200), (5, 1, 9), (8, 2, None)]
)
def test_a_query_has_the_same_bits_in_any_block_and_beside_any_other_sequence(
    isa, kv_format, window, heads, kv_heads
):
    shape = AttentionShape(heads, kv_heads, 24, window, 0.2, kv_format)
    kernels, total = NativeKernels(), 700
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randn((total, shape.qkv_size), generator=generator) for _ in range(2)]
    angles = torch.rand((total, 12), generator=generator) * 6
    rotary = Rotary(angles.cos(), angles.sin())
    alone = pages_for(shape)
    want = torch.cat(
        [attend(kernels, shape, alone, i, texts[0][i : i + 1], angles) for i in range(total)]
    )
    whole = attend(kernels, shape, pages_for(shape), 0, texts[0], angles)
    assert torch.equal(want, whole)
    tables = [pages_for(shape), pages_for(shape)]
    at = [0, 0]
    for count, other in ((3, 700), (60, 0), (1, 0), (300, 0), (336, 0)):
        spans, rows = [], []
        for i, size in enumerate((count, other)):
            if size:
                tables[i].reserve(at[i], at[i] + size)
                spans.append(Span(size, at[i], [tables[i]]))
                rows.append(texts[i][at[i] : at[i] + size])
        out = torch.empty((count + other, heads * 24))
        kernels.attention(torch.cat(rows), spans, rotary, shape, out)
        assert torch.equal(out[:count], want[at[0] : at[0] + count])
        at = [at[0] + count, at[1] + other]


def test_a_nan_key_reaches_every_query_that_sees_it(isa):
    for kv_format in KV_FORMATS.values():
        shape = AttentionShape(2, 1, 16, None, 0.25, kv_format)
        qkv = torch.randn((3, shape.qkv_size))
        qkv[1, 32:48] = float("nan")  # the key of the second position
        out = attend(NativeKernels(), shape, pages_for(shape), 0, qkv, torch.zeros(3, 8))
        assert out[0].isfinite().all()
        assert out[1:].isnan().all()


def test_a_nan_value_reaches_only_the_queries_that_see_it(isa):
    for kv_format in KV_FORMATS.values():
        shape = AttentionShape(2, 1, 16, 3, 0.25, kv_format)
        qkv = torch.randn((9, shape.qkv_size))
        qkv[4, 48:] = float("nan")  # the value of position 4: 4, 5 and 6 see it
        out = attend(NativeKernels(), shape, pages_for(shape), 0, qkv, torch.zeros(9, 8))
        seen = torch.tensor([4, 5, 6])
        assert out[seen].isnan().all()
        assert out[[row for row in range(9) if row not in seen]].isfinite().all()


def test_a_nan_in_a_far_segment_is_not_lost(isa):
    shape = AttentionShape(2, 1, 16, None, 0.25, KV_FORMATS["fp32"])
    qkv = torch.randn((600, shape.qkv_size))
    for bad in (3, 290, 599):
        poisoned = qkv.clone()
        poisoned[bad, 32:48] = float("nan")
        table = pages_for(shape)
        attend(NativeKernels(), shape, table, 0, poisoned[:599], torch.zeros(600, 8))
        last = attend(NativeKernels(), shape, table, 599, poisoned[599:], torch.zeros(600, 8))
        assert last.isnan().all()


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
    shape = AttentionShape(4, 2, 16, None, 0.25, KV_FORMATS["fp32"])
    qkv = torch.randn((40, shape.qkv_size), generator=torch.Generator().manual_seed(0)) * 60
    outs = [
        attend(kernels, shape, pages_for(shape), 0, qkv, torch.zeros(40, 8))
        for kernels in (ReferenceKernels(), NativeKernels())
    ]
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
