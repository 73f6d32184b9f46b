import hashlib

import numpy as np
import pytest
import torch

from neuralchat_lite.errors import CheckpointError, ConfigError
from neuralchat_lite.kernels import native
from neuralchat_lite.kernels.layout import SCALE_DTYPES, pack_codes, pack_groups
from neuralchat_lite.quantization import rtn
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.quantization.nearest import RoundToNearest
from neuralchat_lite.quantization.rtn import packed_rtn, quantize_rtn, rtn_slabs

DTYPES = ["int4_clip", "int4_fullrange", "int8"]
# Per dtype: lowest and highest symmetric level, divisor; lowest and highest asymmetric code.
RANGES = {
    "int4_clip": (-7, 7, 7, 0, 15),
    "int4_fullrange": (-8, 7, 8, 0, 15),
    "int8": (-127, 127, 127, -128, 127),
}
PARTS = ("codes", "scales", "zeros", "minima")
NORMAL = {"weight_dtype": "int4_clip", "group_size": 32, "scheme": "sym", "scale_dtype": "fp16"}


def slow_rtn(weight, weight_dtype, group_size, scheme, scale_dtype):
    """One group after the other, one weight after the other."""
    low_level, high_level, divisor, low_code, high_code = RANGES[weight_dtype]
    rows, cols = weight.shape
    size = cols if group_size == -1 else group_size
    starts = range(0, cols, size)
    codes = np.zeros((rows, cols), int)
    scales = np.zeros((rows, len(starts)), np.float32)
    zeros = np.zeros((rows, len(starts)), int)
    for row in range(rows):
        for group, start in enumerate(starts):
            values = weight[row, start : start + size]
            if scheme == "sym":
                wanted = np.abs(values).max() / np.float32(divisor)
            else:
                low, high = min(values.min(), np.float32(0)), max(values.max(), np.float32(0))
                wanted = (high - low) / np.float32(high_code - low_code)
            scale = torch.tensor(wanted).to(SCALE_DTYPES[scale_dtype]).float().numpy()
            symmetric_zero = 0 if weight_dtype == "int8" else 8
            zero = symmetric_zero
            if scheme == "asym" and scale > 0:
                zero = int(np.clip(np.rint(low_code - low / scale), low_code, high_code))
            for column, value in enumerate(values, start):
                level = np.rint(value / scale) if scale > 0 else 0
                if scheme == "sym":
                    codes[row, column] = np.clip(level, low_level, high_level) + zero
                else:
                    codes[row, column] = np.clip(level + zero, low_code, high_code)
            scales[row, group], zeros[row, group] = scale, zero
    return codes, scales, zeros


@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("scheme", ["sym", "asym"])
@pytest.mark.parametrize("scale_dtype", ["fp16", "bf16", "fp32"])
def test_codes_scales_and_zeros_equal_the_slow_ones(weight_dtype, group_size, scheme, scale_dtype):
    generator = torch.Generator().manual_seed(group_size + len(weight_dtype))
    weight = torch.randn(37, 172, generator=generator) * 0.02
    weight[3] = 0  # groups without any weight
    weight[4] = weight[4].abs()  # one-sided groups
    weight[5] = -weight[5].abs()
    got = quantize_rtn(
        weight,
        weight_dtype=weight_dtype,
        group_size=group_size,
        scheme=scheme,
        scale_dtype=scale_dtype,
        slab_weights=172 * 16,  # several slabs, the last one short
    )
    codes, scales, zeros = slow_rtn(weight.numpy(), weight_dtype, group_size, scheme, scale_dtype)
    assert got.codes.dtype == torch.int8
    assert got.scales.dtype == SCALE_DTYPES[scale_dtype]
    np.testing.assert_array_equal(got.scales.float().numpy(), scales)
    np.testing.assert_array_equal(got.codes.numpy(), codes)
    assert (got.zeros is None) == (scheme == "sym")
    if got.zeros is not None:
        np.testing.assert_array_equal(got.zeros.numpy(), zeros)
    assert got.underflows == 0


def slow_affine(weight, weight_dtype, group_size, scale_dtype):
    """Codes, scales and minima, one group after the other."""
    lowest, highest = RANGES[weight_dtype][3:]
    rows, cols = weight.shape
    size = cols if group_size == -1 else group_size
    starts = range(0, cols, size)
    codes = np.zeros((rows, cols), int)
    scales, minima = (np.zeros((rows, len(starts)), np.float32) for _ in range(2))

    def stored(value):
        return torch.tensor(value).to(SCALE_DTYPES[scale_dtype]).float().numpy()

    for row in range(rows):
        for group, start in enumerate(starts):
            values = weight[row, start : start + size]
            scale = stored((values.max() - values.min()) / np.float32(highest - lowest))
            minimum = stored(values.min() - np.float32(lowest) * scale)
            for column, value in enumerate(values, start):
                level = np.rint((value - minimum) / scale) if scale > 0 else 0
                padding = 0 if weight_dtype == "int8" else 8
                codes[row, column] = np.clip(level, lowest, highest) if scale > 0 else padding
            scales[row, group], minima[row, group] = scale, minimum
    return codes, scales, minima


@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("scale_dtype", ["fp16", "bf16", "fp32"])
def test_affine_codes_scales_and_minima_equal_the_slow_ones(weight_dtype, group_size, scale_dtype):
    generator = torch.Generator().manual_seed(group_size + len(weight_dtype))
    weight = torch.randn(37, 172, generator=generator) * 0.02
    weight[3] = 0  # groups without any weight
    weight[4] = weight[4].abs() + 0.5  # groups far from zero
    weight[5] = 0.25  # groups of one value
    settings = {"weight_dtype": weight_dtype, "group_size": group_size, "scale_dtype": scale_dtype}
    got = quantize_rtn(weight, **settings, scheme="affine", slab_weights=172 * 16)
    codes, scales, minima = slow_affine(weight.numpy(), *settings.values())
    assert got.zeros is None
    assert got.scales.dtype == got.minima.dtype == SCALE_DTYPES[scale_dtype]
    np.testing.assert_array_equal(got.scales.float().numpy(), scales)
    np.testing.assert_array_equal(got.minima.float().numpy(), minima)
    np.testing.assert_array_equal(got.codes.numpy(), codes)
    assert got.underflows == 0
    [slab] = packed_rtn(weight, **settings, scheme="affine")
    assert torch.equal(slab.codes, pack_codes(got.codes, rtn.LEVELS[weight_dtype].stored))
    assert torch.equal(slab.scales, pack_groups(got.scales))
    assert torch.equal(slab.minima, pack_groups(got.minima))


def test_weights_that_are_16_levels_above_a_minimum_come_back_exactly():
    scales = torch.tensor([[0.013, 0.21]]).half().float()
    minima = torch.tensor([[-0.3, 0.7]]).half().float()
    codes = torch.randint(0, 16, (1, 2, 32))
    codes[..., 0], codes[..., 1] = 0, 15
    weight = (scales[..., None] * codes + minima[..., None]).view(1, 64)
    got = quantize_rtn(weight, **NORMAL | {"scheme": "affine"})
    assert torch.equal(got.codes.view(1, 2, 32), codes.to(torch.int8))
    assert torch.equal(got.scales.float(), scales)
    assert torch.equal(got.minima.float(), minima)


def test_minima_above_fp16_are_refused_and_fit_bf16():
    weight = torch.full((16, 32), 1e6) + torch.arange(32)
    affine = NORMAL | {"scheme": "affine"}
    with pytest.raises(ConfigError, match=r"layer\.weight.*minimum 1e\+06.*scale_dtype='bf16'"):
        quantize_rtn(weight, **affine, name="layer.weight")
    assert quantize_rtn(weight, **affine | {"scale_dtype": "bf16"}).minima.isfinite().all()


def test_a_range_below_fp16_beside_larger_weights_keeps_its_minimum():
    weight = torch.randn(16, 64)
    weight[5, 32:] = 0.5
    weight[5, 40] += 6e-8
    got = quantize_rtn(weight, **NORMAL | {"scheme": "affine"})
    assert got.underflows == 1
    assert got.scales[5, 1] == 0
    assert got.minima[5, 1] == 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_of_any_float_dtype_are_quantized_and_left_as_they_are(dtype):
    weight = (torch.randn(16, 64) * 0.02).to(dtype)
    before = weight.clone()
    got = quantize_rtn(weight, **NORMAL)
    assert torch.equal(weight, before)
    assert torch.equal(got.codes, quantize_rtn(before.float(), **NORMAL).codes)


def test_halves_round_to_even():
    weight = torch.zeros(1, 32)
    weight[0, :6] = torch.tensor([7.0, 0.5, 1.5, 2.5, -0.5, -1.5])  # scale 1
    assert (quantize_rtn(weight, **NORMAL).codes[0, :6] - 8).tolist() == [7, 0, 2, 2, 0, -2]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("scheme", ["sym", "asym", "affine"])
def test_a_weight_that_is_not_finite_is_named_with_its_place(value, scheme):
    weight = torch.randn(50, 40)
    weight[33, 39] = value
    with pytest.raises(CheckpointError, match=r"layer\.weight\[33, 39\] is"):
        quantize_rtn(weight, **NORMAL | {"scheme": scheme}, name="layer.weight", slab_weights=1)


def test_scales_above_fp16_are_refused_and_fit_bf16():
    weight = torch.full((16, 32), 1e6)
    with pytest.raises(ConfigError, match=r"layer\.weight.*1\.43e\+05.*scale_dtype='bf16'"):
        quantize_rtn(weight, **NORMAL, name="layer.weight")
    assert quantize_rtn(weight, **NORMAL | {"scale_dtype": "bf16"}).scales.isfinite().all()


@pytest.mark.parametrize("scheme", ["sym", "asym"])
def test_a_negligible_group_below_fp16_becomes_zero_and_is_counted(scheme):
    weight = torch.randn(16, 64)
    weight[5, 32:] = 1e-8
    got = quantize_rtn(weight, **NORMAL | {"scheme": scheme})
    zero = 8 if got.zeros is None else got.zeros[5, 1]
    assert got.underflows == 1
    assert got.scales[5, 1] == 0
    assert (got.codes[5, 32:] == zero).all()


@pytest.mark.parametrize(("scale_dtype", "value"), [("fp16", 1e-8), ("fp32", 2e-45)])
def test_a_group_below_the_scales_that_is_not_negligible_is_refused(scale_dtype, value):
    weight = torch.full((16, 64), value)
    with pytest.raises(ConfigError, match=f"below the range of {scale_dtype}.*use scale_dtype"):
        quantize_rtn(weight, **NORMAL | {"scale_dtype": scale_dtype})


@pytest.mark.parametrize("scheme", ["sym", "asym"])
@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("scale", [7e-8, 8.9e-8, 1.4e-7, 3e-6, 5.9e-5])
def test_subnormal_scales_clip_no_weight(scheme, weight_dtype, scale):
    divisor = RANGES[weight_dtype][2]
    weight = torch.rand(32, 64) * 2 - 1
    weight[:, 0::32], weight[:, 1::32] = 1, -1
    weight *= divisor * scale
    options = NORMAL | {"weight_dtype": weight_dtype, "scheme": scheme}
    got = quantize_rtn(weight, **options)
    scales = got.scales.double().repeat_interleave(32, 1)
    zeros = 8 if weight_dtype != "int8" else 0
    if got.zeros is not None:
        zeros = got.zeros.double().repeat_interleave(32, 1)
    error = (scales * (got.codes - zeros) - weight).abs()
    # Half a step; a whole one at the top, where fullrange has no level and a zero is rounded.
    top = 1.0 if scheme == "asym" or weight_dtype == "int4_fullrange" else 0.5
    assert (error <= scales * top * (1 + 1e-6)).all()


def test_slabs_are_row_tiles_in_order_and_bounded():
    weight = torch.randn(1000, 1024)
    slabs = list(rtn_slabs(weight, **NORMAL))
    assert len(slabs) == 4
    assert [slab.codes.shape[0] % 16 for slab in slabs[:-1]] == [0, 0, 0]
    assert max(slab.codes.numel() for slab in slabs) <= rtn.SLAB_WEIGHTS
    assert torch.equal(torch.cat([s.codes for s in slabs]), quantize_rtn(weight, **NORMAL).codes)


def test_the_codes_of_version_1_do_not_change():
    # Who changes them on purpose raises the version, so that no cache entry passes for new.
    config = WeightOnlyQuantConfig("int4_clip")
    assert RoundToNearest(config).identity.to_key() == ["rtn", 1]
    weight = ((torch.arange(48 * 172) * 7919 % 1009 - 504) / 512).view(48, 172)
    digest = hashlib.sha256()
    for weight_dtype in DTYPES:
        for scheme in ("sym", "asym"):
            options = NORMAL | {"weight_dtype": weight_dtype, "scheme": scheme}
            got = quantize_rtn(weight, **options)
            digest.update(got.codes.numpy().tobytes() + got.scales.numpy().tobytes())
    assert digest.hexdigest()[:16] == "8ee46b8a4f9d335d"


def packed_whole(weight, **options):
    """(codes, scales, zeros or None, minima or None, underflows) of all pieces together."""
    slabs = list(packed_rtn(weight, **options))
    parts = [[getattr(slab, part) for slab in slabs] for part in PARTS]
    whole = [None if part[0] is None else torch.cat(part) for part in parts]
    return *whole, sum(slab.underflows for slab in slabs)


def oracle(weight, **options):
    slab = quantize_rtn(weight, **options).packed(rtn.LEVELS[options["weight_dtype"]].stored)
    return *(getattr(slab, part) for part in PARTS), slab.underflows


def assert_same(got, want):
    for part, wanted in zip(got[:4], want[:4], strict=True):
        assert (part is None) == (wanted is None)
        if part is not None:
            assert part.dtype == wanted.dtype
            assert torch.equal(part.view(torch.uint8), wanted.view(torch.uint8))
    assert got[4] == want[4]


@pytest.fixture
def without_torch(monkeypatch):
    """Makes the path in PyTorch fail."""

    def never(*args, **kwargs):
        raise AssertionError("the native pass left a slab to PyTorch")

    return lambda: monkeypatch.setattr(rtn, "rtn_slabs", never)


@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("scheme", ["sym", "asym", "affine"])
@pytest.mark.parametrize("scale_dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_native_pass_gives_the_bits_of_its_oracle(
    weight_dtype, group_size, scheme, scale_dtype, dtype, isa, without_torch
):
    weight = (torch.randn(37, 172, generator=torch.Generator().manual_seed(1)) * 0.02).to(dtype)
    weight[3] = 0
    weight[4] = weight[4].abs()
    weight[5] = -weight[5].abs()
    weight[6, ::2] = weight[6, 0] * 0.5  # halves, which round to even
    weight[7], weight[7, 9::40] = 0.25, -0.0  # the smallest is both zeros, or a group is one value
    weight[7, 10::40] = 0.0
    weight[8] += 100  # codes of minima that are rounded far from the smallest weight
    weight[9] = weight[9].abs()
    weight[9, ::32] = 1e-5  # minima that are subnormal in fp16
    options = {
        "weight_dtype": weight_dtype,
        "group_size": group_size,
        "scheme": scheme,
        "scale_dtype": scale_dtype,
    }
    want = oracle(weight, **options)
    without_torch()
    slabs = 172 * 16  # three of them, the last one short
    assert_same(packed_whole(weight, **options, slab_weights=slabs), want)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("scheme", ["sym", "asym", "affine"])
def test_the_native_pass_leaves_bad_weights_to_its_oracle(value, scheme, isa):
    weight = torch.randn(50, 40)
    weight[33, 39] = value
    with pytest.raises(CheckpointError, match=r"layer\.weight\[33, 39\] is"):
        packed_whole(weight, **NORMAL | {"scheme": scheme}, name="layer.weight", slab_weights=1)


@pytest.mark.parametrize("scale_dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("scheme", ["sym", "asym", "affine"])
def test_the_native_pass_leaves_extreme_scales_to_its_oracle(scale_dtype, scheme, isa):
    weight = torch.randn(50, 64)
    weight[20, :32] = torch.linspace(-(2.0**-13), 2.0**-14, 32)  # its scale is subnormal in fp16
    weight[33, 32:] = torch.linspace(-1e-8 if scale_dtype == "fp16" else -1e-44, 0, 32)  # lost
    options = NORMAL | {"scheme": scheme, "scale_dtype": scale_dtype}
    want = oracle(weight, **options)
    assert_same(packed_whole(weight, **options, slab_weights=1), want)
    stored = "int4", -7, 7, 7, 32, SCALE_DTYPES[scale_dtype], scheme
    left = [
        native.round_to_nearest(weight[first : first + 16].clone(), *stored) is None
        for first in range(0, 50, 16)
    ]
    assert left == [False, scale_dtype == "fp16", True, False]
