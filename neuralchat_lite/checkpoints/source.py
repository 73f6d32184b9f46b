"""Where weights come from: one protocol, whatever the files look like.

A checkpoint of safetensors files, one with adapters merged into it, and a random one are sources.
A tensor goes from its source through a quantizer into the packed file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from neuralchat_lite.families.architecture import Architecture
from neuralchat_lite.files.digests import HashProgress, file_digest
from neuralchat_lite.files.unchanged import UnchangedFile
from neuralchat_lite.kernels.layout import PackedMatrix


class Source(Protocol):
    """Weights by their Hugging Face names, and the other files of the model folder.

    name: the last part of the repository's or the folder's name
    architecture: names and shapes of the tensors
    adapters: the adapters merged into it, in order, as in `Model.adapters`
    folder: the Hugging Face folder with its tokenizer; None when there is none
    """

    name: str
    architecture: Architecture
    adapters: tuple[str, ...] = ()
    folder: Path | None = None

    def weight(self, name: str) -> Tensor:
        """The tensor of this name, in the dtype in which it is stored. "lm_head.weight" of a tied
        model is its embedding."""
        ...

    def dtype(self, name: str) -> torch.dtype: ...

    def packed(self, name: str) -> PackedMatrix | None:
        """The matrix of this name if it is stored as codes that the kernels can read, else
        None. A configuration that asks for other codes is refused."""
        return None

    def implied_options(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a WeightOnlyQuantConfig that the stored codes have; empty where none are
        stored. Other options are refused, as codes are not converted.

        asked: the options that were asked for
        Raises ConfigError for codes that cannot be taken over.
        """
        return {}

    def losses(self) -> dict[str, float]:
        """What putting stored codes into our layout has lost so far: for each module the squared
        error, as a part of the sum of squares. Empty where everything is exact."""
        return {}

    def identity(
        self, root: Path | None = None, progress: HashProgress | None = None
    ) -> dict[str, Any]:
        """A JSON object that is the same for the same contents, and contains no path.

        root: cache folder that keeps digests of local files; without one no digest is kept
        progress: called with file name, bytes hashed, bytes in all
        Raises CheckpointError when a file cannot be read.
        """
        ...

    def held_bytes(self) -> int:
        """The most memory in bytes that reading tensor by tensor takes, beyond mapped files."""
        ...

    def sidecars(self) -> dict[str, bytes]:
        """The files beside the weights, by name: configuration and tokenizer."""
        ...

    def require_unchanged(self) -> None:
        """Raise CheckpointError when a file has changed since it was opened. Asked when all has
        been read, before what was made of it gets its name."""
        return None  # a source without files


def largest_tensor(source: Source) -> int:
    """Bytes of the largest tensor: the memory of a source that computes one at a time."""
    return max(
        source.dtype(spec.name).itemsize * math.prod(spec.shape)
        for spec in source.architecture.tensors()
    )


def files_identity(
    files: Sequence[UnchangedFile],
    hub: tuple[str, str] | None,
    root: Path | None,
    progress: HashProgress | None,
) -> dict[str, Any]:
    """The identity of files: the name and commit of a hub repository, else the sha256 of each.

    hub: (repository, resolved commit), if they are from the hub
    Raises CheckpointError when one has changed since it was opened.
    """
    if hub is not None:
        # The commit fixes the contents. The list of files decides which are copied.
        sizes = {file.name: file.size for file in files}
        return {"hub": hub[0], "revision": hub[1], "files": sizes}
    return {"files": {file.name: file_digest(file, root, progress) for file in files}}


def read_files(files: Sequence[UnchangedFile]) -> dict[str, bytes]:
    """Small files by name. Raises CheckpointError when one cannot be read or has changed."""
    return {file.name: file.read() for file in files}
