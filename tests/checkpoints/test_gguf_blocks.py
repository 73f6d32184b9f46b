"""Codes of GGUF blocks are, dequantized in fp32, what the `gguf` package computes, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from neuralchat_lite.checkpoints.gguf.blocks import BLOCK_TYPES, Codes, convert, weights
from neuralchat_lite.checkpoints.gguf.encode import WRITTEN, as_halves, encoded, exact_type
from neuralchat_lite.checkpoints.gguf.types import TYPE_NAMES, TYPE_SIZES

from ..made_gguf import random_blocks

gguf = pytest.importorskip("gguf", reason="needs the gguf package: pip install gguf")

EXACT = sorted(set(BLOCK_TYPES) - {"Q6_K"})


def theirs(raw: np.ndarray, kind: str) -> np.ndarray:
    return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])


def same_bits(ours: np.ndarray, wanted: np.ndarray) -> bool:
    """Bit for bit, but for the sign of zero: 0 * -1 + 0 is 0 and not -0."""
    return np.array_equal((ours + 0.0).view(np.uint32), (wanted + 0.0).view(np.uint32))


@pytest.mark.parametrize("kind", EXACT)
def test_codes_dequantize_to_the_bits_of_the_reference(kind: str) -> None:
    raw = random_blocks(kind, 5, 512)
    assert same_bits(weights(raw, kind), theirs(raw, kind))


@pytest.mark.parametrize("kind", EXACT)
def test_a_scale_below_the_normal_numbers_is_exact(kind: str) -> None:
    raw = random_blocks(kind, 2, 256).reshape(-1, TYPE_SIZES[kind][1])
    raw[:, 0:2] = np.array([np.float16(6e-8)]).view(np.uint8)
    raw = raw.reshape(2, -1)
    assert same_bits(weights(raw, kind), theirs(raw, kind))


@pytest.mark.parametrize("kind", sorted(BLOCK_TYPES))
def test_codes_lie_in_the_range_of_their_weight_dtype(kind: str) -> None:
    found = convert(random_blocks(kind, 4, 1024), kind)
    low, high = {"int4": (0, 15), "int8": (-128, 127)}[BLOCK_TYPES[kind].setting.weight_dtype]
    assert low <= found.codes.min() and found.codes.max() <= high
    assert found.codes.shape == (4, 1024)
    assert found.scales.shape == (4, 32)
    dtype = {"fp16": np.float16, "fp32": np.float32}[BLOCK_TYPES[kind].setting.scale_dtype]
    assert found.scales.dtype == dtype
    assert (found.minima is None) == (BLOCK_TYPES[kind].setting.scheme == "sym")


def test_the_loss_of_q6_k_is_what_it_says_and_small() -> None:
    raw = random_blocks("Q6_K", 16, 1024)
    want = theirs(raw, "Q6_K").astype(np.float64)
    error, total = convert(raw, "Q6_K").error or (0, 0)
    measured = np.square(weights(raw, "Q6_K") - want).sum()
    assert measured == pytest.approx(error, rel=1e-3)
    assert total == pytest.approx(np.square(want).sum(), rel=1e-6)
    assert error / total < 1.3e-5  # 8 bits by the largest weight of a group give 2.0e-5


def test_one_group_of_each_pair_of_q6_k_stays_as_it_is() -> None:
    """Up to a rounding in fp32, as the step is a part of the larger of its two scales."""
    raw = random_blocks("Q6_K", 8, 512)
    off = np.abs(weights(raw, "Q6_K") - theirs(raw, "Q6_K")).reshape(-1, 2, 16)
    size = np.abs(theirs(raw, "Q6_K")).reshape(-1, 32).max(axis=1)
    assert (off.max(axis=2).min(axis=1) <= 4e-7 * size).all()


def test_zero_scales_of_q6_k_give_zeros() -> None:
    raw = random_blocks("Q6_K", 1, 256)
    raw[:, 192:208] = 0
    assert not weights(raw, "Q6_K").any()


def test_rows_are_converted_in_pieces_as_they_are_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = random_blocks("Q6_K", 7, 256)
    whole = convert(raw, "Q6_K")
    monkeypatch.setattr("neuralchat_lite.checkpoints.gguf.blocks.PIECE", 512)
    pieces = convert(raw, "Q6_K")
    assert np.array_equal(pieces.codes, whole.codes)
    assert np.array_equal(pieces.scales, whole.scales)
    assert pieces.error == pytest.approx(whole.error)
    assert isinstance(pieces, Codes)


def test_numbers_and_sizes_are_those_of_the_package() -> None:
    for number, name in TYPE_NAMES.items():
        if number in list(gguf.GGMLQuantizationType):
            assert gguf.GGMLQuantizationType(number).name == name
    for name, sizes in TYPE_SIZES.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == sizes


@pytest.mark.parametrize("kind", sorted(WRITTEN.values()))
def test_codes_go_back_to_the_bytes_that_they_came_from(kind: str) -> None:
    raw = random_blocks(kind, 6, 128)
    assert np.array_equal(encoded(convert(raw, kind), kind), raw)
    setting = BLOCK_TYPES[kind].setting
    assert exact_type(setting.weight_dtype, setting.scheme) == kind


def test_scales_that_fp16_does_not_hold_are_not_rounded() -> None:
    assert as_halves(np.array([1.0, 2**-24], np.float32)) is not None
    for beyond in (1 + 2**-11, 70000.0, 2**-26):
        assert as_halves(np.array([1.0, beyond], np.float32)) is None
