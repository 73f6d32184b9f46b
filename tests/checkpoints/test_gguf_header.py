"""Headers of GGUF files: what the `gguf` package wrote is read, and what lies is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from neuralchat_lite.checkpoints.gguf.header import GGUFFile
from neuralchat_lite.errors import CheckpointError, UnsupportedModelError


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(key: str, form: str, kind: int, value: object) -> bytes:
    return text(key) + struct.pack("<I", kind) + struct.pack(f"<{form}", value)


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


def file_of(
    entries: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: int = 64,
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A file of these parts; its data are `data` bytes behind a multiple of 32."""
    promised = counts or (len(tensors), len(entries))
    head = b"GGUF" + struct.pack("<IQQ", version, *promised) + b"".join((*entries, *tensors))
    return head + bytes(-len(head) % 32) + bytes(data)


@pytest.fixture
def write(tmp_path: Path):
    def write(data: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        return path

    return write


def test_what_the_package_writes_is_read(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the gguf package: pip install gguf")
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    values = {
        "a.uint8": (writer.add_uint8, 200), "a.int8": (writer.add_int8, -3),
        "a.uint32": (writer.add_uint32, 2**32 - 1), "a.float": (writer.add_float32, 0.5),
        "a.uint64": (writer.add_uint64, 2**63), "a.bool": (writer.add_bool, True),
        "a.text": (writer.add_string, "naïve"), "a.texts": (writer.add_array, ["x", "", "ÿ"]),
        "a.numbers": (writer.add_array, [1, 2, 3]), "a.floats": (writer.add_array, [0.5, -1.0]),
    }  # fmt: skip
    for key, (add, value) in values.items():
        add(key, value)
    wanted = {
        "one.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "two.weight": np.arange(4, dtype=np.float16),
    }
    for name, data in wanted.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = GGUFFile(path)
    assert found.metadata == {
        "general.architecture": "llama", **{key: value for key, (_, value) in values.items()}
    }  # fmt: skip
    assert [(each.name, each.type, each.shape) for each in found.tensors.values()] == [
        ("one.weight", "F32", (2, 3)),
        ("two.weight", "F16", (4,)),
    ]
    for name, data in wanted.items():
        assert found.raw(found.tensors[name]).tobytes() == data.tobytes()


FLOAT = tensor("a", (2, 8))  # 64 bytes
DAMAGED = {
    "another format": (b"GGML" + bytes(60), "begins with b'GGML', expected b'GGUF'"),
    "nothing": (b"", "has 0 bytes"),
    "too many tensors": (file_of(counts=(2**60, 0)), "number of tensors .* expected at most"),
    "too many entries": (file_of(counts=(0, 2**63)), "number of metadata entries .* at most"),
    "fewer tensors": (file_of(counts=(3, 0), data=4), "number of tensors 3"),
    "a long key": (file_of((struct.pack("<Q", 2**62),)), "bytes at byte .* at most the"),
    "a long array": (
        file_of((text("k") + struct.pack("<IIQ", 9, 4, 2**61),)),
        "2305843009213693952 .* expected at most",
    ),
    "an array of arrays": (
        file_of((text("k") + struct.pack("<IIQ", 9, 9, 1),)),
        "an array of type 9 .* numbers or texts",
    ),
    "an unknown value": (file_of((entry("k", "I", 77, 1),)), "of type 77"),
    "no UTF-8": (file_of((struct.pack("<Q", 1) + b"\xff" + bytes(12),)), "expected UTF-8"),
    "a key twice": (file_of((entry("k", "I", 4, 1), entry("k", "I", 4, 2))), "'k' twice"),
    "a tensor twice": (file_of((), (FLOAT, FLOAT)), "'a' twice"),
    "no dimensions": (file_of((), (text("a") + bytes(32),)), "0 dimensions .* expected 1 to 4"),
    "many dimensions": (file_of((), (tensor("a", (1,) * 5),)), "5 dimensions"),
    "an empty dimension": (file_of((), (tensor("a", (0, 8)),)), r"shape \[0, 8\]"),
    "a huge dimension": (file_of((), (tensor("a", (2**40, 8)),)), "sizes from 1"),
    "too large a tensor": (file_of((), (tensor("a", (3, 8)),)), "96 bytes at offset 0"),
    "an offset outside": (file_of((), (tensor("a", (2, 8), 0, 2**63),)), "within the 64 bytes"),
    "an offset between": (file_of((), (tensor("a", (1, 8), 0, 4),)), "a multiple of 32"),
    "part of a block": (file_of((), (tensor("a", (1, 40), 8),)), "rows of 40 .* multiple of 32"),
    "shared bytes": (file_of((), (FLOAT, tensor("b", (1, 8), 0, 32))), "a and b share bytes"),
    "no alignment": (file_of((entry("general.alignment", "I", 4, 3),)), "power of two, got 3"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_header_is_refused(write, name: str) -> None:
    data, why = DAMAGED[name]
    with pytest.raises(CheckpointError, match=f"(?s){why.replace(' .* ', '.*')}") as caught:
        GGUFFile(write(data))
    assert str(caught.value).endswith("download the file again")


@pytest.mark.parametrize(("version", "what"), [(1, "version 1,"), (3 << 24, "3 in big-endian")])
def test_other_versions_are_refused_by_name(write, version: int, what: str) -> None:
    with pytest.raises(UnsupportedModelError, match=what):
        GGUFFile(write(file_of(version=version)))


def test_a_file_that_ends_anywhere_is_refused(write) -> None:
    entries = (entry("k", "I", 4, 7), text("t") + struct.pack("<I", 8) + text("some words"))
    whole = file_of(entries, (FLOAT,))
    assert GGUFFile(write(whole)).metadata == {"k": 7, "t": "some words"}
    for length in range(0, len(whole), 5):
        with pytest.raises(CheckpointError):
            GGUFFile(write(whole[:length]))


def test_a_type_that_is_not_known_is_kept_for_a_refusal_by_name(write) -> None:
    found = GGUFFile(write(file_of((), (tensor("a", (2, 8), 16), tensor("b", (2, 8), 99)))))
    assert [each.type for each in found.tensors.values()] == ["IQ2_XXS", "type 99"]
