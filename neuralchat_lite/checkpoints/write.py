"""Writing a source as a Hugging Face folder, tensor by tensor, whole or not at all.

It has the layout in which transformers saves models: shards of at most 5 GB, and an index when
there are several. Memory holds one tensor, however large the model is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

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
    shards = plan_shards(source, shard_bytes)
    total = sum(tensor.nbytes for tensors in shards.values() for tensor in tensors)
    done = 0
    sidecars = source.sidecars()
    with whole_folder(out, estimate(source, shards, sidecars)) as folder:
        for name, data in sidecars.items():
            write_flushed(folder / name, data)
        if len(shards) > 1:
            write_flushed(folder / INDEX, index_of(shards, total))
        for file, tensors in shards.items():
            with SafetensorsWriter(folder / file, tensors, PYTORCH_METADATA) as writer:
                for tensor in tensors:
                    writer.begin(tensor.name)
                    for piece in finite_pieces(source.weight(tensor.name), tensor.name):
                        writer.write(piece)
                        done += piece.numel() * piece.element_size()
                        if progress is not None:
                            progress(Progress("merge", tensor.name, done, total))
                writer.finish()
        source.require_unchanged()
    return out


def plan_shards(source: Source, shard_bytes: int = SHARD_BYTES) -> dict[str, list[StoredTensor]]:
    """File name -> tensors in their order in the file. A tied head is not stored."""
    shards: list[list[StoredTensor]] = [[]]
    room = shard_bytes
    for spec in source.architecture.tensors():
        if spec.role == "lm_head" and source.architecture.tied:
            continue
        tensor = StoredTensor(spec.name, DTYPE_NAMES[source.dtype(spec.name)], spec.shape)
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
    source: Source, shards: dict[str, list[StoredTensor]], sidecars: Mapping[str, bytes]
) -> Estimate:
    """Disk space and memory for writing a checkpoint folder of these shards and files."""
    disk = sum(map(len, sidecars.values()))
    for tensors in shards.values():
        disk += len(build_header(tensors, PYTORCH_METADATA)) + sum(
            tensor.nbytes for tensor in tensors
        )
    if len(shards) > 1:
        disk += len(index_of(shards, disk))
    return Estimate(disk, WORKING_MEMORY + source.held_bytes(), "merging")
