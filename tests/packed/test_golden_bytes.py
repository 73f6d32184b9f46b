"""The example of docs/reference/format.md is what is written and read, byte for byte."""

import hashlib
import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from neuralchat_lite.checkpoints.kinds import PACKED_METADATA
from neuralchat_lite.files.safetensors_file import (
    DTYPE_NAMES,
    SafetensorsWriter,
    StoredTensor,
    aligned_order,
    build_header,
    read_header,
)
from neuralchat_lite.kernels.layout import PackedMatrix, dequantize, pack_codes, pack_groups

HEADER = (
    b'{"__metadata__":{"format":"neuralchat_lite"},'
    b'"example.codes":{"dtype":"U8","shape":[1,4,64],"data_offsets":[0,256]},'
    b'"example.scales":{"dtype":"F16","shape":[1,1,16],"data_offsets":[256,288]},'
    b'"example.zeros":{"dtype":"I8","shape":[1,1,16],"data_offsets":[288,304]}}'
)
GOLDEN = (
    bytes.fromhex("3801000000000000")
    + HEADER
    + b" " * 48
    # Tile 0: rows 0 and 1, columns 0..3 in the low nibbles, 4..7 in the high ones.
    + bytes.fromhex("40516273 bfae9d8c")
    + b"\x88" * (14 * 4 + 3 * 64)
    + bytes.fromhex("0038 0040")
    + bytes(14 * 2)
    + bytes.fromhex("08 03")
    + bytes(14)
)
# The same codes and scales with minima instead of zeros.
AFFINE = (
    bytes.fromhex("3801000000000000")
    + HEADER.replace(b"zeros", b"minima").replace(b'"I8"', b'"F16"').replace(b"304", b"320")
    + b" " * 46
    + GOLDEN[0x140:0x260]
    + bytes.fromhex("00b8 0042")
    + bytes(14 * 2)
)


@pytest.fixture
def example():
    codes = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7], [15, 14, 13, 12, 11, 10, 9, 8]])
    return {
        "example.codes": pack_codes(codes.to(torch.int8), "int4"),
        "example.scales": pack_groups(torch.tensor([[0.5], [2.0]], dtype=torch.float16)),
        "example.zeros": pack_groups(torch.tensor([[8], [3]], dtype=torch.int8)),
    }


def write(path, tensors):
    stored = [StoredTensor(n, DTYPE_NAMES[t.dtype], tuple(t.shape)) for n, t in tensors.items()]
    with SafetensorsWriter(path, aligned_order(stored), PACKED_METADATA) as writer:
        for tensor in writer.tensors:
            writer.begin(tensor.name)
            for piece in tensors[tensor.name].split(1):
                writer.write(piece)
        return writer.finish()


def test_the_example_is_written_as_the_golden_bytes(example, tmp_path):
    write(tmp_path / "file", example)
    assert (tmp_path / "file").read_bytes() == GOLDEN


def test_minima_take_the_place_of_zeros_in_the_golden_bytes(example, tmp_path):
    del example["example.zeros"]
    minima = torch.tensor([[-0.5], [3.0]], dtype=torch.float16)
    write(tmp_path / "file", example | {"example.minima": pack_groups(minima)})
    assert (tmp_path / "file").read_bytes() == AFFINE


def test_the_affine_bytes_are_read_as_scale_times_code_plus_minimum(tmp_path):
    (tmp_path / "file").write_bytes(AFFINE)
    tensors = load_file(tmp_path / "file")
    codes, scales, minima = (tensors[f"example.{part}"] for part in ("codes", "scales", "minima"))
    weights = dequantize(PackedMatrix("int4", 2, 8, 32, codes, scales, None, minima))
    want = [[0.5 * code - 0.5 for code in range(8)], [2.0 * (15 - i) + 3 for i in range(8)]]
    assert weights.tolist() == want


def test_the_document_shows_the_golden_bytes():
    text = (Path(__file__).parents[2] / "docs/reference/format.md").read_text(encoding="utf-8")
    dump = re.search(r"```hexdump\n(.*?)```", text, re.DOTALL).group(1)
    rows = [re.match(r"([0-9a-f]{4})  ((?:[0-9a-f]{2} ?){1,16})", row) for row in dump.splitlines()]
    assert [int(row.group(1), 16) for row in rows] == list(range(0, len(GOLDEN), 16))
    assert bytes.fromhex("".join(row.group(2) for row in rows)) == GOLDEN


def test_the_golden_bytes_are_read_as_the_weights_of_the_document(tmp_path):
    (tmp_path / "file").write_bytes(GOLDEN)
    tensors = load_file(tmp_path / "file")
    parts = (tensors[f"example.{part}"] for part in ("codes", "scales", "zeros"))
    weights = dequantize(PackedMatrix("int4", 2, 8, 32, *parts))
    want = [[0.5 * (code - 8) for code in range(8)], [2.0 * (15 - i - 3) for i in range(8)]]
    assert weights.tolist() == want


@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(DTYPE_NAMES.values())),
            st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_every_tensor_starts_at_a_multiple_of_what_its_size_allows(kinds):
    tensors = [StoredTensor(f"t{i}", dtype, shape) for i, (dtype, shape) in enumerate(kinds)]
    offset = len(build_header(tensors, PACKED_METADATA))
    assert offset % 64 == 0
    for tensor in aligned_order(tensors):
        assert offset % math.gcd(tensor.nbytes, 64) == 0
        offset += tensor.nbytes


def test_the_library_and_our_reader_read_what_is_written(tmp_path):
    tensors = {
        name: torch.arange(math.prod(shape)).to(dtype).view(shape)
        for name, dtype, shape in [
            ("é", torch.int8, (3, 5)),
            ("b", torch.float32, (7,)),
            ("c", torch.bfloat16, (64, 3)),
            ("d", torch.float16, (1, 1, 1)),
        ]
    }
    digest, size = write(tmp_path / "file", tensors)
    data = (tmp_path / "file").read_bytes()
    assert len(data) == size
    assert hashlib.sha256(data).hexdigest() == digest
    loaded = load_file(tmp_path / "file")
    assert loaded.keys() == tensors.keys() == read_header(tmp_path / "file").keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)


def test_a_writer_refuses_bytes_that_do_not_fit_the_header(example, tmp_path):
    stored = [StoredTensor(n, DTYPE_NAMES[t.dtype], tuple(t.shape)) for n, t in example.items()]
    with SafetensorsWriter(tmp_path / "file", stored, PACKED_METADATA) as writer:
        with pytest.raises(AssertionError, match="comes before"):
            writer.begin("example.scales")
        writer.begin("example.codes")
        with pytest.raises(AssertionError, match="256 bytes are missing"):
            writer.begin("example.scales")
        with pytest.raises(AssertionError, match="1 bytes too many"):
            writer.write(torch.zeros(257, dtype=torch.uint8))
