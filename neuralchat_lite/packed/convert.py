"""From a checkpoint to a quantized folder, tensor by tensor, all or nothing.

Everything is written to a temporary folder beside the destination, flushed to the disk and
renamed, so at no moment is there half a model under the final name. Memory holds a few row tiles
of one matrix and the scales, however large the model is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuralchat_lite.adapters.adapter import MergedCheckpoint
from neuralchat_lite.checkpoints.checkpoint import Checkpoint, RandomCheckpoint, stored_name
from neuralchat_lite.checkpoints.finite import all_finite, not_finite
from neuralchat_lite.checkpoints.identity import identify
from neuralchat_lite.checkpoints.kinds import METADATA
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.families.architecture import TensorSpec
from neuralchat_lite.files.folder import (
    Estimate,
    require_empty,
    temporary_beside,
    whole_folder,
    write_flushed,
)
from neuralchat_lite.files.names import MANIFEST, QUANTIZATION, WEIGHTS
from neuralchat_lite.files.progress import Progress, ProgressCallback, hashing
from neuralchat_lite.files.safetensors_file import (
    ALIGNMENT,
    DTYPE_NAMES,
    SafetensorsWriter,
    StoredTensor,
    build_header,
)
from neuralchat_lite.packed.format import packed_tensors
from neuralchat_lite.packed.manifest import (
    FORMAT_VERSION,
    creator,
    file_entry,
    stamp_of,
    write_stamp,
)
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig, names, suggestion
from neuralchat_lite.quantization.rtn import QUANTIZER, packed_rtn

PIECE_BYTES = 1 << 23  # of tensors that are copied
WORKING_MEMORY = 64 << 20  # slabs, torch's scratch space and buffers
Source = Checkpoint | RandomCheckpoint | MergedCheckpoint


def plan(source: Source, config: WeightOnlyQuantConfig) -> list[StoredTensor]:
    """The tensors that the quantized file will have, in order.

    Raises ConfigError when modules_to_not_convert names something that the model does not have.
    """
    modules = sorted({spec.module for spec in source.architecture.tensors()})
    for entry in config.modules_to_not_convert:
        if not any(names(entry, module) for module in modules):
            last = [module.rpartition(".")[2] for module in modules]
            raise ConfigError(
                f"modules_to_not_convert names {entry!r}, which this model does not have"
                f"{suggestion(entry, sorted({*modules, *last}))}: take it out, or use a name such "
                f"as {modules[-1]!r}"
            )
    return packed_tensors(source.architecture, config, lambda name: DTYPE_NAMES[source.dtype(name)])


def estimate(source: Source, config: WeightOnlyQuantConfig) -> Estimate:
    """What quantizing a checkpoint takes. Raises ConfigError as `quantize_checkpoint` does."""
    tensors = plan(source, config)
    disk = len(build_header(tensors, METADATA)) + sum(tensor.nbytes for tensor in tensors)
    disk += sum(path.stat().st_size for path in source.sidecars())
    disk += 1 << 16  # manifest and quantization config
    # Scales and zeros wait until the codes before them are written, and are put together once.
    scales = [tensor.nbytes for tensor in tensors if tensor.name.endswith((".scales", ".zeros"))]
    waiting = sum(count for count in scales if count % ALIGNMENT)  # for the end of the file
    return Estimate(disk, held_bytes(source) + waiting + 4 * max(scales, default=0))


def held_bytes(source: Source) -> int:
    """The memory that reading a source tensor by tensor takes, at most."""
    if isinstance(source, Checkpoint):  # mapped
        return WORKING_MEMORY
    below = held_bytes(source.base) if isinstance(source, MergedCheckpoint) else WORKING_MEMORY
    return below + max(
        source.dtype(spec.name).itemsize * torch.Size(spec.shape).numel()
        for spec in source.architecture.tensors()
    )


def quantize_checkpoint(
    source: Source,
    config: WeightOnlyQuantConfig,
    out: Path | str,
    *,
    source_id: dict[str, Any] | None = None,
    progress: ProgressCallback | None = None,
) -> Path:
    """Quantize a checkpoint into the folder `out`, which must be new or empty; returns it.

    source_id: what `identity.identify` says of the source; found out when not given

    Raises CacheError when the folder cannot be written or memory or disk do not suffice,
    CheckpointError for weights that are not finite, ConfigError for a config that does not fit
    the model. In each case, and when interrupted, `out` is as it was before.
    """
    out = Path(out)
    require_empty(out)
    if source_id is None:
        source_id = identify(source, progress=hashing(progress))
    temporary = temporary_beside(out)
    write_whole(source, config, temporary, out, source_id=source_id, progress=progress)
    return out


def write_whole(
    source: Source,
    config: WeightOnlyQuantConfig,
    temporary: Path,
    out: Path,
    *,
    source_id: dict[str, Any],
    key: str | None = None,
    progress: ProgressCallback | None = None,
) -> None:
    """Write the folder `temporary` and rename it to `out`; whatever fails, remove it."""
    estimate(source, config).require(out.parent)
    with whole_folder(temporary, out):
        write_folder(source, config, temporary, source_id, key, progress)


def write_folder(
    source: Source,
    config: WeightOnlyQuantConfig,
    folder: Path,
    source_id: dict[str, Any],
    key: str | None,
    progress: ProgressCallback | None,
) -> None:
    files: dict[str, dict[str, Any]] = {}

    def write(name: str, data: bytes) -> None:
        write_flushed(folder / name, data)
        files[name] = file_entry(data)

    for path in source.sidecars():
        write(path.name, path.read_bytes())
    if isinstance(source, RandomCheckpoint):
        write("config.json", json.dumps(source.config, indent=2).encode())
    write(QUANTIZATION, config.to_json().encode())
    tensors = plan(source, config)
    with SafetensorsWriter(folder / WEIGHTS, tensors, METADATA) as writer:
        underflows = write_tensors(source, config, writer, progress)
        digest, size = writer.finish()
    files[WEIGHTS] = {"sha256": digest, "size": size}
    manifest = {
        "format_version": FORMAT_VERSION,
        "created_by": creator(),
        "source": {name: part for name, part in source_id.items() if name != "adapters"},
        "adapters": source_id.get("adapters", []),
        "quantizer": {"name": QUANTIZER[0], "version": QUANTIZER[1]},
        "quantization": config.to_dict(),
        "key": key,
        # Groups that became zero because scale_dtype has no scale that small, by module.
        "statistics": {"scale_underflows": underflows},
        "files": dict(files),
    }
    write(MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
    # The digests are those of the bytes as they were written, so the folder counts as verified.
    write_stamp(folder, stamp_of(folder, manifest))


def write_tensors(
    source: Source,
    config: WeightOnlyQuantConfig,
    writer: SafetensorsWriter,
    progress: ProgressCallback | None,
) -> dict[str, int]:
    """Write every tensor in the file's order; the number of scale underflows by module."""
    specs = {spec.module: spec for spec in source.architecture.tensors() if is_matrix(spec)}
    total = sum(tensor.nbytes for tensor in writer.tensors)
    ready: dict[str, list[Tensor]] = {}  # scales and zeros whose codes are written
    underflows: dict[str, int] = {}
    done = 0
    for tensor in writer.tensors:
        module, _, kind = tensor.name.rpartition(".")
        writer.begin(tensor.name)
        if kind == "codes":
            pieces = quantized(source, config, specs[module], module, ready, underflows)
        elif tensor.name in ready:
            pieces = iter(ready.pop(tensor.name))
        else:
            pieces = copied(source.weight(tensor.name), tensor.name)
        for piece in pieces:
            writer.write(piece)
            done += piece.numel() * piece.element_size()
            if progress is not None:
                progress(Progress("quantize", tensor.name, done, total))
    return underflows


def is_matrix(spec: TensorSpec) -> bool:
    return spec.role in ("linear", "lm_head")


def quantized(
    source: Source,
    config: WeightOnlyQuantConfig,
    spec: TensorSpec,
    module: str,
    ready: dict[str, list[Tensor]],
    underflows: dict[str, int],
) -> Iterator[Tensor]:
    """The codes of a matrix piece by piece; at the end its scales and zeros are in `ready`."""
    weight_dtype = config.dtype_of(module)
    assert weight_dtype is not None, module
    scales = ready.setdefault(f"{module}.scales", [])
    zeros = ready.setdefault(f"{module}.zeros", []) if config.scheme == "asym" else []
    for slab in packed_rtn(
        source.weight(stored_name(spec.name, source.architecture)),
        weight_dtype=weight_dtype,
        group_size=config.group_size,
        scheme=config.scheme,
        scale_dtype=config.scale_dtype,
        name=spec.name,
    ):
        yield slab.codes
        scales.append(slab.scales)
        if slab.zeros is not None:
            zeros.append(slab.zeros)
        if slab.underflows:
            underflows[module] = underflows.get(module, 0) + slab.underflows


def copied(weight: Tensor, name: str) -> Iterator[Tensor]:
    """A tensor that stays as it is, a few rows at a time, each found to be finite."""
    rows = max(1, PIECE_BYTES // (weight[:1].numel() * weight.element_size()))
    for first in range(0, weight.shape[0], rows):
        piece = weight[first : first + rows]
        if not all_finite(piece):
            raise not_finite(name, piece, first)
        yield piece
