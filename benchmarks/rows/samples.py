"""Statistics of samples: one definition of the median and of percentiles for all who show them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.rows.kinds import Row


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a share (0 to 1) of the values lies.

    Between two values it is interpolated linearly: numpy's default, definition 7 of Hyndman and
    Fan (1996).
    """
    return float(np.quantile(np.asarray(values), share))


@dataclass(frozen=True)
class Samples:
    """All samples of one metric, in its unit."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def percentile(self, share: float) -> float:
        return percentile(self.values, share)


def samples_of(rows: Iterable[Row], **wanted: Any) -> list[float]:
    """All samples of the latency rows whose fields have these values."""
    found: list[float] = []
    for row in rows:
        if row["kind"] == "latency":
            fields: Mapping[str, Any] = row
            if all(fields[name] == value for name, value in wanted.items()):
                found += row["samples"]
    return found
