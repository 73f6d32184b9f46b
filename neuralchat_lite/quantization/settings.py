"""How one matrix is quantized: the options of a configuration that may differ between matrices."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MatrixSettings:
    """The options of one matrix, by their names and in the spelling of WeightOnlyQuantConfig."""

    weight_dtype: str
    group_size: int
    scheme: str
    scale_dtype: str
