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
from typing import Any

import torch
from torch import Tensor

from neuralchat_lite.errors import CheckpointError

ALIGNMENT = 64  # a cache line, and one tile of weights
REMEDY = "download or copy the file again"
HEADER_LIMIT = 100_000_000  # the limit of the safetensors library

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


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file in the order of its header, checked to lie within the file.

    Raises CheckpointError when the file is missing, cut short or not a safetensors file.
    """
    header, start, size = parse_header(path)
    tensors = {}
    end = 0
    try:
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            tensor = StoredTensor(name, str(entry["dtype"]), tuple(map(int, entry["shape"])))
            first, last = entry["data_offsets"]
            known = tensor.dtype in DTYPES or tensor.dtype in OTHER_SIZES
            if first < 0 or last < first or (known and last - first != tensor.nbytes):
                raise ValueError(
                    f"{name} of {tensor.shape} {tensor.dtype} has bytes {first}:{last}"
                )
            end = max(end, last)
            tensors[name] = tensor
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged(path, error) from None
    if start + end != size:
        raise CheckpointError(
            f"{path} has {size} bytes, but its header describes {start + end}: {REMEDY}"
        )
    return tensors


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of the file, from its header. Raises CheckpointError as `read_header` does."""
    metadata = parse_header(path)[0].get("__metadata__")
    return metadata if isinstance(metadata, dict) else {}


def parse_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header as it stands, the byte at which tensors begin, and the size of the file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(size - 8, HEADER_LIMIT):
                raise CheckpointError(
                    f"{path} is cut short or not a safetensors file: it has {size} bytes, and its "
                    f"header should have {length}: {REMEDY}"
                )
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: {REMEDY}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): {REMEDY}") from None
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from None
    if not isinstance(header, dict):
        raise damaged(path, TypeError(f"the header is a {type(header).__name__}"))
    return header, 8 + length, size


def damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} has a damaged header ({error}): download or copy the file again"
    )


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
