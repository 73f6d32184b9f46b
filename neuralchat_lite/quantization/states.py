"""Hidden states between two blocks, of all calibration samples, in a mapped file.

A file is raw fp32 of [samples, length, hidden]. It appears under its name only when it is whole, so
a killed run finds either all of it or nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from neuralchat_lite.files.folder import flush_file
from neuralchat_lite.quantization.torch_block import TorchBlock

BATCH_TOKENS = 4096  # processed together: large enough for matrix products, small in memory


@dataclass(frozen=True)
class Samples:
    """What a block receives and should give.

    inputs: [samples, length, hidden] fp32, from the quantized blocks before it
    wanted: of the same shape, what the block gives without any quantization; None where the
        algorithm does not ask for it
    cos, sin: [length, head_dim / 2], the rotary embedding
    plain: the inputs from unquantized blocks, where `wanted` is there too
    """

    inputs: Tensor
    wanted: Tensor | None
    cos: Tensor
    sin: Tensor
    plain: Tensor | None = None

    def batches(self) -> Iterator[slice]:
        count, length, _ = self.inputs.shape
        step = max(BATCH_TOKENS // length, 1)
        for first in range(0, count, step):
            yield slice(first, min(first + step, count))

    def run(self, block: TorchBlock, part: slice | list[int]) -> Tensor:
        """The outputs of a block for some samples."""
        output: Tensor = block(self.inputs[part], self.cos, self.sin)
        return output

    def run_all(self, block: TorchBlock) -> Iterator[tuple[slice, Tensor]]:
        with torch.no_grad():
            for part in self.batches():
                yield part, self.run(block, part)


class StateFiles:
    """The files of hidden states in a work folder."""

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        self.folder = folder
        self.shape = shape

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.f32"

    def exists(self, name: str) -> bool:
        return self.path(name).exists()

    def open(self, name: str) -> Tensor:
        return self.mapped(self.path(name), writable=False)

    def write(self, name: str, fill: Callable[[Tensor], None]) -> None:
        """Make a file: `fill` writes into its tensor."""
        unfinished = self.folder / f"{name}.writing"
        unfinished.unlink(missing_ok=True)
        tensor = self.mapped(unfinished, writable=True)
        fill(tensor)
        del tensor
        flush_file(unfinished)
        unfinished.rename(self.path(name))

    def remove(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    def mapped(self, path: Path, *, writable: bool) -> Tensor:
        size = math.prod(self.shape)
        return torch.from_file(str(path), shared=writable, size=size).view(self.shape)
