"""The header of a GGUF file, read within limits: metadata by key, tensors by name.

Any file may come from anyone, so each count and length is compared with what is left of the file
before it is used. The `gguf` package reads these files too: it makes an array object of every
token (4 s where this takes 0.1 s), and believes lengths. It is the oracle of the tests.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neuralchat_lite.checkpoints.gguf.types import TYPE_NAMES, TYPE_SIZES
from neuralchat_lite.errors import CheckpointError, UnsupportedModelError
from neuralchat_lite.files.unchanged import UnchangedFile
from neuralchat_lite.values import shown

MAGIC = b"GGUF"
VERSIONS = (2, 3)
REMEDY = "download the file again"
MOST_ENTRIES = 1 << 16  # of metadata, and of tensors: the largest models have some thousands
MOST_ELEMENTS = 1 << 22  # of an array in the metadata: the largest are merges, some 500,000
MOST_DIMENSIONS = 4
MOST_ROWS_OR_COLUMNS = 2**31 - 1  # the kernels count in 32 bits
ALIGNMENT = 32  # where "general.alignment" does not say
SMALLEST_ENTRY = 8 + 1 + 4 + 1  # bytes: length of the key, the key, the type, a value
SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8
STRING, ARRAY = 8, 9
# Number of a value's type -> its form for `struct`.
SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"
}  # fmt: skip

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor of the file.

    type: its name, such as "Q4_0"
    shape: rows first, as in PyTorch; the file has the columns first
    start: its place in the file, in bytes
    """

    name: str
    type: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


class Cursor:
    """A place in the mapped file that moves forward, and never over `end`."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.end, self.place = path, data, len(data), 0

    def left(self) -> int:
        return self.end - self.place

    def damaged(self, what: str, rule: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: {what} at byte {self.place}, expected {rule}: {REMEDY}"
        )

    def take(self, count: int, what: str) -> int:
        """The place of the next `count` bytes, which are passed."""
        if count > self.left():
            raise self.damaged(f"{what} of {count} bytes", f"at most the {self.left()} that follow")
        place, self.place = self.place, self.place + count
        return place

    def scalar(self, form: str, what: str) -> Any:
        size = struct.calcsize(f"<{form}")
        return struct.unpack_from(f"<{form}", self.data, self.take(size, what))[0]

    def count(self, what: str, smallest: int, most: int) -> int:
        """A number of things that each take `smallest` bytes or more."""
        count: int = self.scalar("Q", what)
        limit = min(most, self.left() // smallest)
        if count > limit:
            raise self.damaged(f"{what} {count}", f"at most {limit}")
        return count

    def text(self, what: str) -> str:
        length = self.scalar("Q", f"the length of {what}")
        place = self.take(length, what)
        try:
            return self.data[place : place + length].decode()
        except UnicodeDecodeError:
            raise self.damaged(what, "UTF-8") from None

    def value(self, key: str) -> Any:
        kind = self.scalar("I", f"the type of {key}")
        if kind == STRING:
            return self.text(key)
        if kind in SCALARS:
            return self.scalar(SCALARS[kind], key)
        if kind != ARRAY:
            raise self.damaged(f"{key} of type {kind}", f"one of {sorted((*SCALARS, 8, 9))}")
        element = self.scalar("I", f"the type of {key}")
        if element == STRING:
            return [self.text(key) for _ in range(self.count(key, 8, MOST_ELEMENTS))]
        if element not in SCALARS:
            raise self.damaged(f"{key}, an array of type {element}", "numbers or texts")
        size = struct.calcsize(f"<{SCALARS[element]}")
        count = self.count(key, size, MOST_ELEMENTS)
        return list(
            struct.unpack_from(
                f"<{count}{SCALARS[element]}", self.data, self.take(count * size, key)
            )
        )


class GGUFFile(UnchangedFile):
    """A GGUF file, mapped.

    metadata: key -> number, text, true or false, or a list of them
    tensors: by name; what they hold lies within the file, and no two overlap

    Raises CheckpointError when it is damaged, UnsupportedModelError for another version.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if self.size < 24:
            raise CheckpointError(
                f"{path} has {self.size} bytes, expected a GGUF file of 24 or more: {REMEDY}"
            )
        self._map = mmap.mmap(self.descriptor, self.size, access=mmap.ACCESS_READ)
        cursor = Cursor(path, self._map)
        check_version(cursor)
        tensors = cursor.count("the number of tensors", SMALLEST_TENSOR, MOST_ENTRIES)
        entries = cursor.count("the number of metadata entries", SMALLEST_ENTRY, MOST_ENTRIES)
        self.metadata = unique(cursor, entries, read_entry)
        found = unique(cursor, tensors, read_tensor)
        self.tensors = placed(cursor, found, alignment_of(cursor, self.metadata))

    def raw(self, tensor: GGUFTensor) -> Bytes:
        """The bytes of a tensor, [rows, bytes of a row], not copied."""
        data = np.frombuffer(self._map, np.uint8, tensor.nbytes, tensor.start)
        return data.reshape(math.prod(tensor.shape[:-1]), -1)


def check_version(cursor: Cursor) -> None:
    place = cursor.take(len(MAGIC), "the first word")
    found = cursor.data[place : cursor.place]
    if found != MAGIC:
        raise CheckpointError(f"{cursor.path} begins with {found!r}, expected {MAGIC!r}: {REMEDY}")
    version = cursor.scalar("I", "the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        why = " in big-endian order" if swapped in VERSIONS else ""
        raise UnsupportedModelError(
            f"{cursor.path} is GGUF version {swapped if why else version}{why}, expected one of "
            f"{VERSIONS} in little-endian order: convert the model again with a new llama.cpp"
        )
    assert sys.byteorder == "little", "the package is built for x86-64 alone"


def unique(cursor: Cursor, count: int, read: Callable[[Cursor], tuple[str, Any]]) -> dict[str, Any]:
    """So many entries with different names."""
    found: dict[str, Any] = {}
    for _ in range(count):
        name, value = read(cursor)
        if name in found:
            raise CheckpointError(f"{cursor.path} has {shown(name)} twice: {REMEDY}")
        found[name] = value
    return found


def read_entry(cursor: Cursor) -> tuple[str, Any]:
    key = cursor.text("a key")
    return key, cursor.value(shown(key))


def read_tensor(cursor: Cursor) -> tuple[str, tuple[str, tuple[int, ...], int]]:
    """(name, (type, shape, offset))"""
    name = cursor.text("the name of a tensor")
    dimensions = cursor.scalar("I", name)
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise cursor.damaged(f"{shown(name)} with {dimensions} dimensions", "1 to 4")
    shape = tuple(cursor.scalar("Q", name) for _ in range(dimensions))[::-1]
    if not all(1 <= size <= MOST_ROWS_OR_COLUMNS for size in shape):
        raise cursor.damaged(f"{shown(name)} of shape {list(shape)}", "sizes from 1 to 2**31 - 1")
    number = cursor.scalar("I", name)
    kind = TYPE_NAMES.get(number, f"type {number}")
    return name, (kind, shape, cursor.scalar("Q", name))


def alignment_of(cursor: Cursor, metadata: dict[str, Any]) -> int:
    found = metadata.get("general.alignment", ALIGNMENT)
    if type(found) is not int or not 1 <= found <= 1 << 20 or found & (found - 1):
        raise CheckpointError(
            f"{cursor.path}: general.alignment must be a power of two, got {shown(found)}: {REMEDY}"
        )
    return found


def placed(
    cursor: Cursor, found: dict[str, tuple[str, tuple[int, ...], int]], alignment: int
) -> dict[str, GGUFTensor]:
    """The tensors with their places, each within the file and apart from the others."""
    base = -(-cursor.place // alignment) * alignment
    tensors = {}
    for name, (kind, shape, offset) in found.items():
        start = base + offset
        values, size = TYPE_SIZES.get(kind, (1, 0))  # of an unknown type no size is known
        if shape[-1] % values:
            raise CheckpointError(
                f"{cursor.path}: {name} is {kind} with rows of {shape[-1]}, expected a multiple "
                f"of {values}: {REMEDY}"
            )
        nbytes = math.prod(shape) // values * size
        if offset % alignment or start + nbytes > cursor.end:
            raise CheckpointError(
                f"{cursor.path}: {name} has {nbytes} bytes at offset {offset}, expected a multiple "
                f"of {alignment} within the {cursor.end - base} bytes of tensors: {REMEDY}"
            )
        tensors[name] = GGUFTensor(name, kind, shape, start, nbytes)
    end, before = base, ""
    for tensor in sorted(tensors.values(), key=lambda each: each.start):
        if tensor.start < end:
            raise CheckpointError(
                f"{cursor.path}: {before} and {tensor.name} share bytes of the file: {REMEDY}"
            )
        end, before = tensor.start + tensor.nbytes, tensor.name
    return tensors
