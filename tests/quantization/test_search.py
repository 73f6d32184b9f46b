import hashlib

import pytest
import torch

from neuralchat_lite.errors import CheckpointError, ConfigError
from neuralchat_lite.kernels.layout import PackedMatrix, dequantize
from neuralchat_lite.quantization import search
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.quantization.nearest import RoundToNearest
from neuralchat_lite.quantization.quantizer import PackedSlab
from neuralchat_lite.quantization.rtn import quantize_rtn
from neuralchat_lite.quantization.search import packed_search, quantize_search

SCHEMES = ("sym", "asym", "affine", "affine8")
NORMAL = {"group_size": 32, "scheme": "affine8", "scale_dtype": "fp16"}


def drawn(rows=37, cols=172, dtype=torch.float32):
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(1)) * 0.02
    weight[3] = 0
    weight[4] = weight[4].abs()  # ranges without 0
    weight[5] = -weight[5].abs() - 0.5
    weight[6] = 0.25  # a range without width
    weight[7, ::2] = weight[7, 0] * 0.5
    weight[8, 5] = 3  # one large weight
    return weight.to(dtype)


def weights_of(matrix, cols, group_size):
    """What a kernel reads, [rows, cols]."""
    slab = matrix.packed("int4")
    parts = (slab.codes, slab.scales, slab.zeros, slab.minima)
    return dequantize(PackedMatrix("int4", len(matrix.codes), cols, group_size, *parts))


def errors(weight, matrix, group_size):
    """Squared errors [rows, groups], in fp64."""
    found = weights_of(matrix, weight.shape[1], group_size).double()
    size = weight.shape[1] if group_size == -1 else group_size
    squares = (found - weight.double()) ** 2
    return torch.stack([part.sum(1) for part in squares.split(size, 1)], 1)


def plain(weight, options):
    scheme = "asym" if options["scheme"] == "affine8" else options["scheme"]
    return quantize_rtn(weight, weight_dtype="int4_clip", **options | {"scheme": scheme})


@pytest.mark.parametrize("scale_dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_group_has_a_larger_error_than_plain_rounding(scheme, group_size, scale_dtype):
    options = {"group_size": group_size, "scheme": scheme, "scale_dtype": scale_dtype}
    weight = drawn()
    found = errors(weight, quantize_search(weight, **options), group_size)
    rounded = errors(weight, plain(weight, options), group_size)
    assert (found <= rounded * (1 + 1e-4) + 1e-12).all()
    assert found[9:].sum() < (0.96 if scheme == "asym" else 0.9) * rounded[9:].sum()


# Of normally distributed weights, beside int4_clip in groups of 32: see docs/design.md.
@pytest.mark.parametrize(
    ("scheme", "group_size", "most"),
    [("sym", 32, 0.71), ("asym", 32, 0.65), ("affine", 32, 0.54), ("affine8", 32, 0.54)],
)
def test_squared_errors_of_normal_weights_are_those_of_the_documentation(scheme, group_size, most):
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(2))
    options = NORMAL | {"scheme": scheme, "group_size": group_size}
    found = errors(weight, quantize_search(weight, **options), group_size).sum()
    assert found / errors(weight, plain(weight, NORMAL | {"scheme": "sym"}), 32).sum() < most


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_that_are_levels_already_stay_as_they_are(scheme):
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(0, 16, (16, 2, 32), generator=generator).float()
    codes[..., :2] = torch.tensor([0.0, 15.0])
    scales = torch.tensor([2.0**-6, 2.0**-5]).view(1, 2, 1)
    moved = {"sym": 0.0, "asym": 2.0, "affine": 0.3125, "affine8": 1.375}[scheme]
    weight = (scales * (codes - 8 + moved)).view(16, 64)
    matrix = quantize_search(weight, **NORMAL | {"scheme": scheme})
    assert torch.equal(weights_of(matrix, 64, 32), weight)
    again = quantize_search(weights_of(matrix, 64, 32), **NORMAL | {"scheme": scheme})
    assert torch.equal(again.codes, matrix.codes)


def test_important_columns_are_rounded_finer():
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(4))
    importance = torch.ones(128)
    importance[::4] = 100
    alike, other = (
        (weights_of(quantize_search(weight, **NORMAL, importance=each), 128, 32) - weight)[:, ::4]
        for each in (None, importance)
    )
    assert other.square().sum() < 0.8 * alike.square().sum()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_that_are_not_finite_are_refused_by_their_place(value, scheme, isa):
    weight = torch.randn(50, 40)
    weight[33, 39] = value
    with pytest.raises(CheckpointError, match=r"layer\.weight\[33, 39\] is"):
        list(packed_search(weight, **NORMAL | {"scheme": scheme}, name="layer.weight"))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scales_that_do_not_fit_are_refused_as_by_plain_rounding(scheme):
    with pytest.raises(ConfigError, match="scale_dtype='bf16'"):
        list(packed_search(torch.randn(16, 64) * 1e7, **NORMAL | {"scheme": scheme}))
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(5)) * 1e-9
    with pytest.raises(ConfigError, match="below the range of fp16"):
        list(packed_search(weight, **NORMAL | {"scheme": scheme}))


def joined(slabs):
    slabs = list(slabs)
    parts = []
    for part in ("codes", "scales", "zeros", "minima"):
        found = [getattr(slab, part) for slab in slabs]
        parts.append(None if found[0] is None else torch.cat(found))
    return PackedSlab(*parts[:3], sum(slab.underflows for slab in slabs), parts[3])


def assert_same(got, want):
    for part in ("codes", "scales", "zeros", "minima"):
        ours, theirs = getattr(got, part), getattr(want, part)
        assert (ours is None) == (theirs is None), part
        assert ours is None or (ours.dtype == theirs.dtype and torch.equal(ours, theirs)), part
    assert got.underflows == want.underflows


@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("scale_dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_native_pass_gives_the_bits_of_its_oracle(
    group_size, scheme, scale_dtype, dtype, isa, monkeypatch
):
    options = {"group_size": group_size, "scheme": scheme, "scale_dtype": scale_dtype}
    weight = drawn(dtype=dtype)
    want = quantize_search(weight, **options).packed("int4")

    def never(*args, **kwargs):
        raise AssertionError("the native pass left a slab to PyTorch")

    monkeypatch.setattr(search, "search_slabs", never)
    assert_same(joined(packed_search(weight, **options, slab_weights=172 * 16)), want)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_extreme_scales_are_left_to_the_oracle(scheme, isa):
    weight = torch.randn(50, 64, generator=torch.Generator().manual_seed(6))
    weight[20, :32] = torch.linspace(-(2.0**-13), 2.0**-14, 32)  # its scale is subnormal in fp16
    weight[33, 32:] = torch.linspace(-1e-8, 0, 32)  # lost
    options = NORMAL | {"scheme": scheme}
    want = quantize_search(weight, **options).packed("int4")
    assert_same(joined(packed_search(weight, **options, slab_weights=1)), want)


def test_the_codes_of_version_1_do_not_change():
    # Who changes them on purpose raises the version, so that no cache entry passes for new.
    assert RoundToNearest(WeightOnlyQuantConfig()).identity.to_key() == ["rtn", 1, {"search": 1}]
    weight = ((torch.arange(48 * 172) * 7919 % 1009 - 504) / 512).view(48, 172)
    digest = hashlib.sha256()
    for scheme in SCHEMES:
        got = quantize_search(weight, **NORMAL | {"scheme": scheme})
        digest.update(got.codes.numpy().tobytes() + got.scales.numpy().tobytes())
    assert digest.hexdigest()[:16] == "8539c04a3122307c"
