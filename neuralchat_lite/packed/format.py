"""Quantized weights on disk: one self-contained folder, memory-mapped.

The tensors are stored in the order in which kernels read them, so loading only opens a file. The
header is compared, byte for byte, with the one that config.json and quantization_config.json imply.
Weights are views of the mapping. docs/reference/format.md specifies the folder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from neuralchat_lite.checkpoints.checkpoint import WEIGHT_DTYPES
from neuralchat_lite.checkpoints.kinds import PACKED_METADATA
from neuralchat_lite.errors import CacheError, CheckpointError, ConfigError
from neuralchat_lite.families.architecture import HEAD, HEAD_MODULE, Architecture, TensorSpec
from neuralchat_lite.families.config_json import read_architecture
from neuralchat_lite.files.digests import HashProgress
from neuralchat_lite.files.json_file import JSON_LIMIT
from neuralchat_lite.files.mapped import MappedFile
from neuralchat_lite.files.names import ADAPTER_WEIGHTS, QUANTIZATION, WEIGHTS
from neuralchat_lite.files.regular import read_regular, remedy_of
from neuralchat_lite.files.safetensors_file import (
    StoredTensor,
    aligned_order,
    build_header,
)
from neuralchat_lite.kernels.layout import PackedMatrix, packed_shapes
from neuralchat_lite.packed.manifest import (
    check_digests,
    check_sizes,
    is_stamped,
    noted_config,
    read_manifest,
    remedy,
)
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig, options_of_json
from neuralchat_lite.quantization.levels import LEVELS
from neuralchat_lite.quantization.settings import MatrixSettings
from neuralchat_lite.values import shown

SCALE_NAMES = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
MINIMA_NAMES = {"affine": None, "affine8": "I8"}  # by scheme; None: as the scales

Verify = Literal["auto", "always", "never"]
# Whether to compare digests, given whether the folder has a valid stamp.
VERIFY: dict[str, Callable[[bool], bool]] = {
    "auto": lambda stamped: not stamped,
    "always": lambda stamped: True,
    "never": lambda stamped: False,
}


def settings_of(config: WeightOnlyQuantConfig, spec: TensorSpec) -> MatrixSettings | None:
    """How a tensor is quantized; None when it is stored as it is."""
    quantized = spec.is_matrix or (spec.role == "embedding" and config.quantizes_table(spec.module))
    return config.settings_of(spec.module) if quantized else None


def is_shared(architecture: Architecture, config: WeightOnlyQuantConfig) -> bool:
    """Whether one quantized matrix is both the embedding and the head that is tied to it. It is
    stored as the head."""
    table = architecture.embedding_name.removesuffix(".weight")
    return (
        architecture.tied
        and config.quantizes_table(table)
        and config.settings_of(table) == config.settings_of(HEAD_MODULE)
    )


def packed_tensors(
    architecture: Architecture, config: WeightOnlyQuantConfig, dtype_of: Callable[[str], str]
) -> list[StoredTensor]:
    """The tensors of a quantized model, in their order in the file.

    dtype_of: Hugging Face name -> dtype ("BF16", "F16", "F32") of a tensor that is not quantized
    """
    tensors = []
    shared = is_shared(architecture, config)
    for spec in architecture.tensors():
        if shared and spec.role == "embedding":
            continue
        module = spec.module
        settings = settings_of(config, spec)
        if settings is not None:
            stored = LEVELS[settings.weight_dtype].stored
            rows, cols = spec.shape
            codes, scales = packed_shapes(stored, rows, cols, settings.group_size)
            tensors.append(StoredTensor(f"{module}.codes", "U8", codes))
            scale_dtype = SCALE_NAMES[settings.scale_dtype]
            tensors.append(StoredTensor(f"{module}.scales", scale_dtype, scales))
            if settings.scheme == "asym":
                tensors.append(StoredTensor(f"{module}.zeros", "I8", scales))
            elif settings.scheme in MINIMA_NAMES:
                dtype = MINIMA_NAMES[settings.scheme] or scale_dtype
                tensors.append(StoredTensor(f"{module}.minima", dtype, scales))
        elif not (architecture.tied and spec.role == "lm_head"):
            tensors.append(StoredTensor(spec.name, dtype_of(spec.name), spec.shape))
    return aligned_order(tensors)


class PackedModel:
    """A quantized folder, mapped. Make it with `open_packed`, which checks it.

    config: the stored configuration; its compute_dtype is only a default
    manifest: the contents of manifest.json
    weights: model.safetensors
    """

    def __init__(
        self,
        folder: Path,
        architecture: Architecture,
        config: WeightOnlyQuantConfig,
        manifest: dict[str, Any],
        weights: MappedFile,
    ) -> None:
        self.folder = folder
        self.architecture = architecture
        self.config = config
        self.manifest = manifest
        # Hugging Face name -> its module in the file, and what it is.
        self._matrices = {
            (HEAD if spec.role == "lm_head" else spec.name): spec
            for spec in architecture.tensors()
            if settings_of(config, spec) is not None
        }
        if is_shared(architecture, config):
            self._matrices[architecture.embedding_name] = self._matrices[HEAD]
        self._file = weights

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters merged before quantizing: hub names, or digests of local adapters."""
        return tuple(
            each.get("hub") or f"sha256 {each['files'][ADAPTER_WEIGHTS][:12]}"
            for each in self.manifest["adapters"]
        )

    def weight(self, name: str) -> PackedMatrix | Tensor:
        """The stored weight of a Hugging Face name, not copied.

        A PackedMatrix for a quantized layer or embedding. For norms, biases and what was not
        converted, a Tensor in the checkpoint's dtype. Tied models have "lm_head.weight" too.
        """
        spec = self._matrices.get(name)
        settings = None if spec is None else settings_of(self.config, spec)
        if spec is None or settings is None:
            return self._file.tensor(self.architecture.stored_name(name))
        module = spec.module
        return PackedMatrix(
            weight_dtype=LEVELS[settings.weight_dtype].stored,
            rows=spec.shape[0],
            cols=spec.shape[1],
            group_size=settings.group_size,
            codes=self._file.tensor(f"{module}.codes"),
            scales=self._file.tensor(f"{module}.scales"),
            zeros=self._file.tensor(f"{module}.zeros") if settings.scheme == "asym" else None,
            minima=(
                self._file.tensor(f"{module}.minima") if settings.scheme in MINIMA_NAMES else None
            ),
        )


def open_packed(
    folder: Path | str,
    *,
    manifest: dict[str, Any] | None = None,
    verify: Verify = "auto",
    progress: HashProgress | None = None,
) -> PackedModel:
    """Map a quantized folder.

    manifest: the folder's, if it was read already
    verify: whether to compare sha256 digests: "auto" (only when the files have no valid
        stamp of an earlier comparison), "always" or "never". Everything else (sizes,
        manifest, header) is checked at every load.
    progress: called with file name, bytes hashed, bytes in all

    Raises CacheError when a file is missing, damaged or of another model, ConfigError for
    an unknown value of `verify`.
    """
    folder = Path(folder)
    if verify not in VERIFY:
        raise ConfigError(f"verify must be one of {sorted(VERIFY)}, got {shown(verify)}")
    manifest = read_manifest(folder) if manifest is None else manifest
    check_sizes(folder, manifest)
    if VERIFY[verify](is_stamped(folder, manifest)):
        check_digests(folder, manifest, progress)
    config = read_config(folder, manifest)
    try:
        architecture = read_architecture(folder)
        weights = MappedFile(folder / WEIGHTS)
        check_header(weights, architecture, config)
        return PackedModel(folder, architecture, config, manifest, weights)
    except CheckpointError as error:
        raise CacheError(f"{without_remedy(error)}: {remedy(folder)}") from error


def without_remedy(error: CheckpointError) -> str:
    """What is wrong. The readers end in ": " and a remedy, which is that of a checkpoint."""
    message = str(error)
    return message.rpartition(": ")[0] or message


def read_config(folder: Path, manifest: dict[str, Any]) -> WeightOnlyQuantConfig:
    path = folder / QUANTIZATION
    try:
        text = read_regular(path, JSON_LIMIT).decode("utf-8")
        config = noted_config(manifest, options_of_json(text))
        noted = noted_config(manifest)
    except OSError as error:
        raise CacheError(
            f"{path} cannot be read ({error.strerror}): {remedy_of(error)}, or {remedy(folder)}"
        ) from None
    except (ConfigError, UnicodeDecodeError) as error:
        raise CacheError(f"{path} or the manifest is damaged ({error}): {remedy(folder)}") from None
    if config != noted:
        raise CacheError(
            f"{path} says {config.to_dict()}, but the manifest says {noted.to_dict()}: "
            f"{remedy(folder)}"
        )
    return config


def check_header(
    weights: MappedFile, architecture: Architecture, config: WeightOnlyQuantConfig
) -> None:
    """Raise CacheError unless model.safetensors has exactly the header that the configs imply."""
    path, folder, found = weights.path, weights.path.parent, weights.header

    def kept_dtype(name: str) -> str:
        dtype = found[name].dtype if name in found else "missing"
        if dtype not in WEIGHT_DTYPES:
            raise CacheError(
                f"{path}: {name} is {dtype}, expected one of {WEIGHT_DTYPES}: {remedy(folder)}"
            )
        return dtype

    expected = packed_tensors(architecture, config, kept_dtype)
    for tensor in expected:
        if found.get(tensor.name) != tensor:
            raise CacheError(
                f"{path}: expected {tensor}, found {found.get(tensor.name)}: {remedy(folder)}"
            )
    header = build_header(expected, PACKED_METADATA)
    if weights.start(len(header)) != header:
        raise CacheError(
            f"{path} does not have the tensors that config.json and {QUANTIZATION} imply, in "
            f"their order: {remedy(folder)}"
        )
