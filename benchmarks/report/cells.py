"""Values as the text of a table's cell; a value that is not known is an empty cell."""

from __future__ import annotations

from benchmarks.rows.samples import Samples


def scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value / scale


def median(samples: Samples | None) -> float | None:
    return None if samples is None else samples.median


def told(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
