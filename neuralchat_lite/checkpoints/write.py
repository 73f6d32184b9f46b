"""Writing a source as a Hugging Face folder, tensor by tensor, whole or not at all.

It has the layout in which transformers saves models: shards of at most 5 GB, and an index when
there are several. Memory holds one tensor, however large the model is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from neuralchat_lite.checkpoints.finite import finite_pieces
from neuralchat_lite.checkpoints.source import Source
from neuralchat_lite.files.folder import Estimate, require_empty, whole_folder, write_flushed
from neuralchat_lite.files.names import INDEX, WEIGHTS
from neuralchat_lite.files.progress import Progress, ProgressCallback
from neuralchat_lite.files.safetensors_file import (
    DTYPE_NAMES,
    SafetensorsWriter,
    StoredTensor,
    aligned_order,
    build_header,
)

PYTORCH_METADATA = {"format": "pt"}  # transformers requires it
SHARD_BYTES = 5_000_000_000
STAGES = {"merge": "merging", "export": "exporting"}  # of progress -> in errors
TENSOR_NAMES = {**DTYPE_NAMES, torch.int32: "I32", torch.int64: "I64"}
WORKING_MEMORY = 64 << 20  # torch's scratch space and buffers


def write_checkpoint(
    source: Source,
    out: Path | str,
    progress: ProgressCallback | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a source into the folder `out`, which must be new or empty; returns it.

    Raises CacheError when the folder cannot be written or there is too little memory or disk,
    CheckpointError for weights that are not finite. In each case, and when interrupted, `out` is
    left unchanged.
    """
    out = Path(out)
    require_empty(out)

    def pieces(name: str) -> Iterable[Tensor]:
        return finite_pieces(source.weight(name), name)

    return write_folder(
        out,
        source.sidecars(),
        stored_tensors(source),
        pieces,
        held_bytes=source.held_bytes(),
        stage="merge",
        progress=progress,
        shard_bytes=shard_bytes,
        check=source.require_unchanged,
    )


def write_folder(
    out: Path,
    sidecars: Mapping[str, bytes],
    tensors: Iterable[StoredTensor],
    pieces: Callable[[str], Iterable[Tensor]],
    *,
    held_bytes: int,
    stage: str,
    progress: ProgressCallback | None = None,
    shard_bytes: int = SHARD_BYTES,
    check: Callable[[], None] = lambda: None,
) -> Path:
    """Write a folder of these files and tensors, whole or not at all.

    pieces: the name of a tensor -> its data, from its first row to its last
    held_bytes: the memory that making them takes
    stage: of progress
    check: called when all has been read; raises what the folder must not be kept with
    """
    shards = plan_shards(tensors, shard_bytes)
    total = sum(tensor.nbytes for tensors in shards.values() for tensor in tensors)
    done = 0
    with whole_folder(out, estimate(shards, sidecars, held_bytes, STAGES[stage])) as folder:
        for name, data in sidecars.items():
            write_flushed(folder / name, data)
        if len(shards) > 1:
            write_flushed(folder / INDEX, index_of(shards, total))
        for file, stored in shards.items():
            with SafetensorsWriter(folder / file, stored, PYTORCH_METADATA) as writer:
                for tensor in stored:
                    writer.begin(tensor.name)
                    for piece in pieces(tensor.name):
                        writer.write(piece)
                        done += piece.numel() * piece.element_size()
                        if progress is not None:
                            progress(Progress(stage, tensor.name, done, total))
                writer.finish()
        check()
    return out


def stored_tensors(source: Source) -> Iterator[StoredTensor]:
    """The tensors of a checkpoint. A tied head is not stored."""
    for spec in source.architecture.tensors():
        if not (spec.role == "lm_head" and source.architecture.tied):
            yield StoredTensor(spec.name, TENSOR_NAMES[source.dtype(spec.name)], spec.shape)


def plan_shards(
    tensors: Iterable[StoredTensor], shard_bytes: int = SHARD_BYTES
) -> dict[str, list[StoredTensor]]:
    """File name -> tensors in their order in the file."""
    shards: list[list[StoredTensor]] = [[]]
    room = shard_bytes
    for tensor in tensors:
        if shards[-1] and tensor.nbytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= tensor.nbytes
    if len(shards) == 1:
        return {WEIGHTS: aligned_order(shards[0])}
    count = len(shards)
    return {
        f"model-{number:05}-of-{count:05}.safetensors": aligned_order(tensors)
        for number, tensors in enumerate(shards, start=1)
    }


def index_of(shards: dict[str, list[StoredTensor]], total: int) -> bytes:
    places = {tensor.name: file for file, tensors in shards.items() for tensor in tensors}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    return (json.dumps(index, indent=2) + "\n").encode()


def estimate(
    shards: dict[str, list[StoredTensor]],
    sidecars: Mapping[str, bytes],
    held_bytes: int,
    called: str,
) -> Estimate:
    """Disk space and memory for writing a checkpoint folder of these shards and files."""
    disk = sum(map(len, sidecars.values()))
    for tensors in shards.values():
        disk += len(build_header(tensors, PYTORCH_METADATA)) + sum(
            tensor.nbytes for tensor in tensors
        )
    if len(shards) > 1:
        disk += len(index_of(shards, disk))
    return Estimate(disk, WORKING_MEMORY + held_bytes, called)
