"""The quantizer protocol: weights in, packed codes out, and an identity for the cache key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from neuralchat_lite.checkpoints.source import Source
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.families.architecture import TensorSpec
from neuralchat_lite.files.progress import ProgressCallback
from neuralchat_lite.quantization.calibration import Calibration


@dataclass(frozen=True)
class PackedSlab:
    """Some row tiles of a quantized matrix, packed as kernels/layout.py says.

    codes: [row tiles, tiles, 64] uint8
    scales: [row tiles, groups, 16] fp16, bf16 or fp32
    zeros: [row tiles, groups, 16] int8, or None unless the scheme is "asym"
    underflows: groups so small that their scale cannot be stored; their weights are all the same
    minima: [row tiles, groups, 16] in the scales' dtype, or None unless the scheme is "affine"
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    underflows: int = 0
    minima: Tensor | None = None


@dataclass(frozen=True)
class QuantizerIdentity:
    """What decides the codes of a quantizer, beside the WeightOnlyQuantConfig.

    version: increased whenever the same weights get other codes
    settings: of the algorithm, as JSON values; empty when it has none
    calibration: sha256 of the data that it was calibrated with; None when it needs none
    """

    name: str
    version: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    calibration: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Its entry in the manifest. Empty parts are left out."""
        more = {"settings": dict(self.settings), "calibration": self.calibration}
        found = {name: value for name, value in more.items() if value}
        return {"name": self.name, "version": self.version, **found}

    def to_key(self) -> list[Any]:
        """Its part of the cache key. Empty parts are left out, so that old keys stay valid."""
        return list(self.to_dict().values())


class Quantizer(Protocol):
    """One algorithm, made from a WeightOnlyQuantConfig. `quantization.QUANTIZERS` lists them.

    `calibrate_with` is asked first, then `identity`, then `prepare`, then the others.
    """

    @property
    def identity(self) -> QuantizerIdentity: ...

    def calibrate_with(self, calibration: Calibration | None) -> None:
        """Take the texts to calibrate with. Raises ConfigError for texts that an algorithm does
        not use, and for none where it needs some."""
        if calibration is not None:
            raise ConfigError(
                f"algorithm {self.identity.name!r} looks at weights alone, but calibration texts "
                "were given: leave calibration out, or use an algorithm that reads them, such as "
                "'GPTQ'"
            )

    def prepare(self, source: Source, work: Path, progress: ProgressCallback | None = None) -> None:
        """Compute what takes hours, into files of the folder `work`; go on with what an earlier
        process has left there. An algorithm that takes one matrix at a time has nothing to do."""
        return None

    def changed(self, source: Source, name: str) -> Tensor | None:
        """A tensor that is stored otherwise than in the source, in the source's dtype, such as a
        norm that took over the scales of channels; else None."""
        return None

    def slabs(self, source: Source, spec: TensorSpec) -> Iterator[PackedSlab]:
        """The codes of one matrix, piece by piece from its first row tile to its last.

        spec: the matrix; its module has a weight_dtype in the configuration
        Raises CheckpointError for weights that are not finite, ConfigError for weights that the
        configuration cannot hold.
        """
        ...
