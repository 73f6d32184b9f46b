"""Quantizing a source into a folder, tensor by tensor.

Memory holds a few row tiles of one matrix and the scales, however large the model is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from neuralchat_lite.checkpoints.finite import finite_pieces
from neuralchat_lite.checkpoints.kinds import PACKED_METADATA
from neuralchat_lite.checkpoints.source import Source
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.families.architecture import HEAD_MODULE, TensorSpec
from neuralchat_lite.files.digests import digest_of
from neuralchat_lite.files.folder import Estimate, require_empty, whole_folder, write_flushed
from neuralchat_lite.files.names import MANIFEST, QUANTIZATION, WEIGHTS
from neuralchat_lite.files.progress import Progress, ProgressCallback, hashing
from neuralchat_lite.files.safetensors_file import (
    ALIGNMENT,
    DTYPE_NAMES,
    SafetensorsWriter,
    StoredTensor,
    build_header,
)
from neuralchat_lite.files.work import work_folder
from neuralchat_lite.kernels.layout import SCALE_DTYPES, PackedMatrix
from neuralchat_lite.packed.foreign import marked
from neuralchat_lite.packed.format import packed_tensors
from neuralchat_lite.packed.manifest import (
    creator,
    file_entry,
    format_version,
    stamp_of,
    write_stamp,
)
from neuralchat_lite.quantization import open_quantizer
from neuralchat_lite.quantization.calibration import Calibration
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig, names
from neuralchat_lite.quantization.levels import LEVELS
from neuralchat_lite.quantization.quantizer import PackedSlab, Quantizer
from neuralchat_lite.values import shown, suggestion

BESIDE_CODES = ("scales", "zeros", "minima")  # fields of PackedSlab
WORKING_MEMORY = 64 << 20  # slabs, torch's scratch space and buffers


def plan(source: Source, config: WeightOnlyQuantConfig) -> list[StoredTensor]:
    """The tensors that the quantized file will have, in order.

    Raises ConfigError when modules_to_not_convert names something that the model does not have, or
    an override changes none of its matrices.
    """
    refuse_idle_overrides(source, config)
    modules = sorted({spec.module for spec in source.architecture.tensors()})
    for entry in config.modules_to_not_convert:
        if not any(names(entry, module) for module in modules):
            last = [module.rpartition(".")[2] for module in modules]
            raise ConfigError(
                f"modules_to_not_convert names {shown(entry)}, which this model does not have"
                f"{suggestion(entry, sorted({*modules, *last}))}: take it out, or use a name such "
                f"as {modules[-1]!r}"
            )
    return packed_tensors(source.architecture, config, lambda name: DTYPE_NAMES[source.dtype(name)])


def matrices_of(source: Source, config: WeightOnlyQuantConfig) -> list[TensorSpec]:
    """The matrices that may be quantized: the embedding only where the configuration names it."""
    return [
        spec
        for spec in source.architecture.tensors()
        if spec.is_matrix or (spec.role == "embedding" and config.quantizes_table(spec.module))
    ]


def refuse_idle_overrides(source: Source, config: WeightOnlyQuantConfig) -> None:
    specs = matrices_of(source, config)
    matrices = [spec.module for spec in specs]
    tied = source.architecture.tied and not config.converts(HEAD_MODULE)
    if tied and any(spec.role == "embedding" for spec in specs):
        raise ConfigError(
            "overrides quantizes the embedding, but modules_to_not_convert keeps the head, which "
            "is tied to it: take one of them out"
        )
    used = {config.override_of(module) for module in matrices if config.converts(module)}
    for override in config.overrides:
        if override in used:
            continue
        where = f"overrides has the pattern {shown(override.pattern)}"
        if any(override.matches(module) for module in matrices):
            raise ConfigError(
                f"{where}, but an earlier pattern or modules_to_not_convert decides all matrices "
                "that it matches: put it first, or take it out"
            )
        raise ConfigError(
            f"{where}, which matches no matrix of this model"
            f"{suggestion(override.pattern, matrices)}: take it out, or use the full name of a "
            f"module such as {matrices[0]!r}, where * stands for any characters"
        )


def estimate(
    source: Source, tensors: Sequence[StoredTensor], sidecars: Mapping[str, bytes]
) -> Estimate:
    """Disk space and memory for writing a quantized folder of these tensors and files."""
    disk = len(build_header(tensors, PACKED_METADATA)) + sum(tensor.nbytes for tensor in tensors)
    disk += sum(map(len, sidecars.values()))
    disk += 1 << 16  # manifest and quantization config
    # Scales and the like stay in memory until the codes before them in the file are written.
    endings = tuple(f".{part}" for part in BESIDE_CODES)
    scales = [tensor.nbytes for tensor in tensors if tensor.name.endswith(endings)]
    waiting = sum(count for count in scales if count % ALIGNMENT)  # for the end of the file
    memory = WORKING_MEMORY + source.held_bytes() + waiting + 4 * max(scales, default=0)
    return Estimate(disk, memory)


def quantize_checkpoint(
    source: Source,
    config: WeightOnlyQuantConfig,
    out: Path | str,
    *,
    calibration: Calibration | None = None,
    progress: ProgressCallback | None = None,
) -> Path:
    """Quantize a source into the folder `out`, which must be new or empty; returns it.

    calibration: texts, for an algorithm that looks at activations

    Raises CacheError when the folder cannot be written or there is too little memory or disk,
    CheckpointError for weights that are not finite, ConfigError for a config that does not fit
    the model. In each case, and when interrupted, `out` is left unchanged.
    """
    out = Path(out)
    require_empty(out)
    quantizer = open_quantizer(config, calibration)
    source_id = source.identity(progress=hashing(progress))
    write_whole(source, config, quantizer, out, source_id=source_id, progress=progress)
    return out


def write_whole(
    source: Source,
    config: WeightOnlyQuantConfig,
    quantizer: Quantizer,
    out: Path,
    *,
    source_id: dict[str, Any],
    key: str | None = None,
    origin: Path | None = None,
    progress: ProgressCallback | None = None,
) -> None:
    """Write the folder `out`, whole or not at all.

    source_id: the identity of the source
    key: the cache key, which names the temporary folder; None outside the cache
    origin: the checkpoint's folder, stored for people who look at the cache
    """
    tensors, sidecars = plan(source, config), source.sidecars()
    sidecars = {**sidecars, "config.json": marked(sidecars["config.json"])}
    with (
        work_folder(out, work_key(source_id, config, quantizer, out)) as work,
        whole_folder(out, estimate(source, tensors, sidecars), called=key) as folder,
    ):
        quantizer.prepare(source, work, progress)
        files = {name: write_entry(folder / name, data) for name, data in sidecars.items()}
        files[QUANTIZATION] = write_entry(folder / QUANTIZATION, config.to_json().encode())
        with SafetensorsWriter(folder / WEIGHTS, tensors, PACKED_METADATA) as writer:
            underflows = write_tensors(source, config, quantizer, writer, progress)
            digest, size = writer.finish()
        source.require_unchanged()  # all of it has been read: what was hashed is what is written
        files[WEIGHTS] = {"sha256": digest, "size": size}
        lost = {"import_losses": found} if (found := source.losses()) else {}
        manifest = {
            "format_version": format_version(config),
            "created_by": creator(),
            "source": {name: part for name, part in source_id.items() if name != "adapters"},
            "adapters": source_id.get("adapters", []),
            "quantizer": quantizer.identity.to_dict(),
            "quantization": config.to_dict(),
            "key": key,
            # Groups that became zero because scale_dtype has no scale that small, by module.
            "statistics": {"scale_underflows": underflows, **lost},
            "files": files,
        }
        if origin is not None:
            manifest["origin"] = os.path.abspath(origin)  # noqa: PTH100 - as it was named
        write_flushed(folder / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        # The digests are of the bytes as they were written, so the folder counts as verified.
        write_stamp(folder, stamp_of(folder, manifest))


def work_key(
    source_id: Mapping[str, Any], config: WeightOnlyQuantConfig, quantizer: Quantizer, out: Path
) -> str:
    """What decides the bytes, as the name of the folder for unfinished work."""
    return digest_of(
        {
            "source": source_id,
            "quantization": config.bytes_config(),
            "quantizer": quantizer.identity.to_key(),
            "name": out.name,
        }
    )


def write_entry(path: Path, data: bytes) -> dict[str, Any]:
    """Write a file. Returns its entry for the manifest."""
    write_flushed(path, data)
    return file_entry(data)


def write_tensors(
    source: Source,
    config: WeightOnlyQuantConfig,
    quantizer: Quantizer,
    writer: SafetensorsWriter,
    progress: ProgressCallback | None,
) -> dict[str, int]:
    """Write every tensor in the file's order. Returns scale underflows by module."""
    specs = {spec.module: spec for spec in matrices_of(source, config)}
    total = sum(tensor.nbytes for tensor in writer.tensors)
    ready: dict[str, list[Tensor]] = {}  # scales and the like whose codes are written
    underflows: dict[str, int] = {}
    done = 0
    for tensor in writer.tensors:
        module, _, kind = tensor.name.rpartition(".")
        writer.begin(tensor.name)
        if kind == "codes":
            slabs = slabs_of(source, config, quantizer, specs[module])
            pieces = codes_of(slabs, module, ready, underflows)
        elif tensor.name in ready:
            pieces = iter(ready.pop(tensor.name))
        else:
            changed = quantizer.changed(source, tensor.name)
            stored = source.weight(tensor.name) if changed is None else changed
            pieces = finite_pieces(stored, tensor.name)
        for piece in pieces:
            writer.write(piece)
            done += piece.numel() * piece.element_size()
            if progress is not None:
                progress(Progress("quantize", tensor.name, done, total))
    return underflows


def slabs_of(
    source: Source, config: WeightOnlyQuantConfig, quantizer: Quantizer, spec: TensorSpec
) -> Iterator[PackedSlab]:
    """A matrix as packed codes: the source's own where it has codes, else the quantizer's."""
    packed = source.packed(spec.name)
    if packed is None:
        return quantizer.slabs(source, spec)
    refuse_other_codes(packed, config, spec)
    slab = PackedSlab(packed.codes, packed.scales, packed.zeros, minima=packed.minima)
    return iter([slab])


def refuse_other_codes(
    packed: PackedMatrix, config: WeightOnlyQuantConfig, spec: TensorSpec
) -> None:
    settings = config.settings_of(spec.module)
    assert settings is not None, f"{spec.module} stays as it is"
    pairs = {
        "weight_dtype": (packed.weight_dtype, LEVELS[settings.weight_dtype].stored),
        "group_size": (packed.group_size, settings.group_size),
        "scheme": (packed.scheme, settings.scheme),
        "scale_dtype": (packed.scales.dtype, SCALE_DTYPES[settings.scale_dtype]),
    }
    for option, (stored, asked) in pairs.items():
        if stored != asked:
            raise ConfigError(
                f"{spec.name} is stored with {option} {stored}, but {asked} was asked for: stored "
                "codes are not converted; ask for the stored setting, or give the original "
                "checkpoint"
            )


def codes_of(
    slabs: Iterator[PackedSlab],
    module: str,
    ready: dict[str, list[Tensor]],
    underflows: dict[str, int],
) -> Iterator[Tensor]:
    """The codes of a matrix piece by piece; at the end what lies beside them is in `ready`."""
    for slab in slabs:
        yield slab.codes
        for part in BESIDE_CODES:
            values = getattr(slab, part)
            if values is not None:
                ready.setdefault(f"{module}.{part}", []).append(values)
        if slab.underflows:
            underflows[module] = underflows.get(module, 0) + slab.underflows
