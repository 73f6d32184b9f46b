"""Rows about the same thing: the rounds of one measurement as one, and what may be compared.

Two rows are about the same thing when model, task and metric (or batch and context) agree. They
may be put together or compared only when data, prompts, shapes and threads were the same too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from benchmarks.rows.kinds import Measurement, ResultsError, Row, label

# kind -> what makes two rows one comparison
SUBJECT = {
    "accuracy": ("model", "task", "metric"),
    "latency": ("model", "metric", "batch", "context"),
}
# kind -> what must then be equal, or the comparison is refused
MUST_AGREE = {
    "accuracy": ("model_sha256", "data_sha256", "shots", "count"),
    "latency": ("shape_sha256", "prompt_sha256", "threads", "unit"),
}


def subject(row: Measurement) -> tuple[Any, ...]:
    fields: Mapping[str, Any] = row
    return (row["kind"], *(fields[name] for name in SUBJECT[row["kind"]]))


def merge_rounds(rows: Iterable[Row]) -> list[Measurement]:
    """Rows of several rounds as one, with all samples; of accuracy, the newest of equal ones.

    Raises ResultsError where one variant was measured twice on different data.
    """
    merged: dict[tuple[Any, ...], Measurement] = {}
    for row in rows:
        if row["kind"] != "latency" and row["kind"] != "accuracy":
            continue
        place = (label(row), subject(row))
        earlier = merged.get(place)
        if earlier is None:
            merged[place] = row
            continue
        refuse_differences(earlier, row)
        if row["kind"] == "latency" and earlier["kind"] == "latency":
            row = {**earlier, "samples": [*earlier["samples"], *row["samples"]]}
        merged[place] = row
    return list(merged.values())


def refuse_differences(left: Measurement, right: Measurement) -> None:
    """Raises ResultsError where two rows of one subject were measured on different data."""
    one, other = cast(Mapping[str, Any], left), cast(Mapping[str, Any], right)
    differing = [name for name in MUST_AGREE[left["kind"]] if one[name] != other[name]]
    if differing:
        listed = "; ".join(f"{n}: {one[n]!s:.12} and {other[n]!s:.12}" for n in differing)
        what = ", ".join(str(part) for part in subject(left)[1:] if part is not None)
        raise ResultsError(
            f"{what}: {label(left)} and {label(right)} cannot be compared, they differ in "
            f"{listed}. Measure both with the same model, data, --limit and --threads, or compare "
            "them in files of their own"
        )
