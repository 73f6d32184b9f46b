"""One safetensors file: reading and checking its header, and writing it as a stream.

A file is 8 bytes of header length (little endian), the header as JSON, then the tensors. Reading
tensors is left to the safetensors library, which maps them. Writing is done here, because a model
must be written while it is being quantized, tensor by tensor, and because tensors must start
at multiples of 64 bytes to be used without a copy.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeGuard

import torch
from torch import Tensor

from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.files.json_file import parse_json
from neuralchat_lite.files.regular import open_regular, remedy_of

ALIGNMENT = 64  # a cache line, and one tile of weights
REMEDY = "download or copy the file again"
# A thousand layers of 32 tensors, each described in 256 bytes; the deepest model has 126 layers.
# The safetensors library reads up to 100 MB, which takes Python 8 s.
HEADER_LIMIT = 1000 * 32 * 256
LONGEST_NAME = 1000  # characters of a tensor's name
LONGEST_SHOWN = 100
LONGEST_DTYPE = 16
MOST_DIMENSIONS = 32
LARGEST = 1 << 63

DTYPE_NAMES = {
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
}
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
# Bytes per element of dtypes that occur in checkpoints but are not supported here.
OTHER_SIZES = {"F64": 8, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "BOOL": 1}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the header describes it."""

    name: str
    dtype: str  # safetensors' name: "BF16", "U8"
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        size = DTYPES[self.dtype].itemsize if self.dtype in DTYPES else OTHER_SIZES[self.dtype]
        return size * math.prod(self.shape)


def read_header(path: Path, descriptor: int | None = None) -> dict[str, StoredTensor]:
    """The tensors of a file in the order of its header, checked to lie within the file.

    descriptor: of the file, where it is open already
    Raises CheckpointError when the file is missing, cut short or not a safetensors file.
    """
    header, start, size = parse_header(path, descriptor)
    tensors = {}
    end = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        wrong = fault_of(name, entry)
        if wrong is not None:
            raise damaged(path, f"{name[:LONGEST_SHOWN]!r} {wrong}")
        tensors[name] = StoredTensor(name, entry["dtype"], tuple(entry["shape"]))
        end = max(end, entry["data_offsets"][1])
    if start + end != size:
        raise CheckpointError(
            f"{path} has {size} bytes, but its header describes {start + end}: {REMEDY}"
        )
    return tensors


def fault_of(name: str, entry: Any) -> str | None:
    """What is wrong with a tensor's description in a header; None when it is right."""
    if len(name) > LONGEST_NAME:
        return f"is a name of {len(name)} characters, expected {LONGEST_NAME} at most"
    if not isinstance(entry, dict):
        return f"is a {type(entry).__name__}, expected an object"
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not dtype.isalnum() or len(dtype) > LONGEST_DTYPE:
        return "has no dtype that is a name"
    if not are_counts(shape) or len(shape) > MOST_DIMENSIONS:
        return f"has no shape of at most {MOST_DIMENSIONS} sizes"
    if not are_counts(offsets) or len(offsets) != 2 or offsets[1] < offsets[0]:
        return "has no data_offsets, a first and a last byte"
    tensor = StoredTensor(name, dtype, tuple(shape))
    known = dtype in DTYPES or dtype in OTHER_SIZES
    if known and offsets[1] - offsets[0] != tensor.nbytes:
        return f"of {tensor.shape} {dtype} has bytes {offsets[0]}:{offsets[1]}"
    return None


def are_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        type(entry) is int and 0 <= entry < LARGEST for entry in value
    )


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of the file, from its header. Raises CheckpointError as `read_header` does."""
    metadata = parse_header(path)[0].get("__metadata__")
    return metadata if isinstance(metadata, dict) else {}


def parse_header(path: Path, descriptor: int | None = None) -> tuple[dict[str, Any], int, int]:
    """The header as it stands, the byte at which tensors begin, and the size of the file."""
    try:
        opened = open_regular(path) if descriptor is None else descriptor
        try:
            size = os.fstat(opened).st_size
            start = os.pread(opened, 8, 0)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > size - 8:
                raise CheckpointError(
                    f"{path} is cut short or not a safetensors file: it has {size} bytes, and its "
                    f"header should have {length}: {REMEDY}"
                )
            if length > HEADER_LIMIT:
                raise CheckpointError(
                    f"{path} has a header of {length} bytes, at most {HEADER_LIMIT} are read: "
                    "save the model with fewer tensors in a file, or with less metadata"
                )
            text = os.pread(opened, length, 8)
        finally:
            if descriptor is None:
                os.close(opened)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: {REMEDY}") from None
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}): {remedy_of(error)}"
        ) from None
    try:
        return parse_json(text), 8 + length, size
    except ValueError as error:
        raise damaged(path, error) from None


def damaged(path: Path, why: object) -> CheckpointError:
    return CheckpointError(f"{path} has a damaged header ({why}): {REMEDY}")


def aligned_order(tensors: Iterable[StoredTensor]) -> list[StoredTensor]:
    """Sort tensors: first those whose bytes are a multiple of 64, then of 32, and so on.

    So the first start at multiples of 64 bytes, and the others at multiples of their element size.
    """
    return sorted(tensors, key=lambda tensor: -math.gcd(tensor.nbytes, ALIGNMENT))


def build_header(tensors: Iterable[StoredTensor], metadata: Mapping[str, str]) -> bytes:
    """Length and header for tensors stored one after the other in this order.

    Spaces pad it so that the first tensor starts at a multiple of 64 bytes.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


class SafetensorsWriter:
    """Writes a file from front to back and hashes it. Holds no tensor in memory.

    The tensors must be written in the order given, each in as many pieces as is convenient.
    """

    def __init__(
        self, path: Path, tensors: Iterable[StoredTensor], metadata: Mapping[str, str]
    ) -> None:
        self.tensors = list(tensors)
        self.position = 0  # of the tensor that comes next
        self.missing = 0  # bytes of the current tensor that are not yet written
        self.size = 0
        self.digest = hashlib.sha256()
        self.file = path.open("xb", buffering=0)
        self.put(build_header(self.tensors, metadata))

    def begin(self, name: str) -> None:
        tensor = self.tensors[self.position]
        assert self.missing == 0, f"{self.missing} bytes are missing before {name}"
        assert tensor.name == name, f"{tensor.name} comes before {name}"
        self.position += 1
        self.missing = tensor.nbytes

    def write(self, piece: Tensor) -> None:
        """Append the bytes of a tensor (of any shape) to the current one."""
        data = memoryview(piece.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        self.missing -= len(data)
        assert self.missing >= 0, f"{-self.missing} bytes too many"
        self.put(data)

    def put(self, data: bytes | memoryview) -> None:
        self.digest.update(data)
        self.size += len(data)
        view = memoryview(data)
        while len(view):  # one write call takes 2 GB at most
            view = view[self.file.write(view) :]

    def finish(self) -> tuple[str, int]:
        """Flush to the disk; the file's sha256 and size."""
        assert self.missing == 0, f"{self.missing} bytes are missing at the end"
        assert self.position == len(self.tensors), "tensors are missing at the end"
        os.fsync(self.file.fileno())
        return self.digest.hexdigest(), self.size

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.file.close()
