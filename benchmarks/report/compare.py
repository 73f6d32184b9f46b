"""One engine against another, measurement by measurement, or a refusal to compare.

Where data, prompts, shapes or threads differ there is no answer, and `compare` says so instead of
giving one. What makes two rows comparable is in `rows.merge`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.accuracy.paired import Paired, compare_items
from benchmarks.rows.kinds import Measurement, ResultsError, Row, label
from benchmarks.rows.merge import merge_rounds, refuse_differences, subject

BASELINE = "transformers:bf16"
NOT_A_MEAN = {"kl_p99"}  # whose items say nothing about the error of the value


@dataclass(frozen=True)
class Comparison:
    """subject: model, task, metric, or model, metric, batch, context

    before, after: value of the score, or median of the samples
    paired: of accuracy, what changed item by item
    """

    kind: str
    subject: tuple[Any, ...]
    variant: str
    before: float
    after: float
    paired: Paired | None


def compare(rows: Iterable[Row], baseline: str = BASELINE) -> list[Comparison]:
    """Every other variant against the baseline.

    Raises ResultsError where the baseline is missing, or was measured on other data.
    """
    measured = merge_rounds(rows)
    before = {subject(row): row for row in measured if label(row) == baseline}
    if not before:
        known = sorted({label(row) for row in measured})
        raise ResultsError(
            f"the baseline {baseline!r} is not among the results: choose one of "
            f"{', '.join(known) or '(there are none)'}"
        )
    found = []
    for row in measured:
        other = before.get(subject(row))
        if other is None or label(row) == baseline:
            continue
        refuse_differences(other, row)
        found.append(compared(other, row))
    return found


def compared(before: Measurement, after: Measurement) -> Comparison:
    if before["kind"] == "accuracy" and after["kind"] == "accuracy":
        left, right = before["value"], after["value"]
        mean = before["metric"] not in NOT_A_MEAN
        paired = compare_items(before["items"], after["items"]) if mean else None
    else:
        assert before["kind"] == "latency" and after["kind"] == "latency"
        left, right = (statistics.median(row["samples"]) for row in (before, after))
        paired = None
    what = subject(after)
    return Comparison(what[0], what[1:], label(after), left, right, paired)


# ---- as tables ----


def accuracy_table(found: Sequence[Comparison]) -> Iterator[str]:
    """Markdown lines. Differences are of the items; those of a perplexity are losses in nats."""
    yield "| model | task | metric | variant | baseline | value | difference | 95 % | flips | p |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for one in found:
        if one.kind == "accuracy":
            values = (f"{one.before:.4g}", f"{one.after:.4g}")
            cells = (*one.subject, one.variant, *values, *paired_cells(one.paired))
            yield f"| {' | '.join(map(str, cells))} |"


def paired_cells(paired: Paired | None) -> tuple[str, str, str, str]:
    """Difference, interval, flips, p."""
    if paired is None:
        return "", "", "", ""
    return (
        f"{paired.difference:+.3g}",
        interval(paired.low, paired.high),
        "" if paired.lost is None else f"-{paired.lost} +{paired.won}",
        "" if paired.p is None else f"{paired.p:.2g}",
    )


def interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:+.3g} to {high:+.3g}"


def latency_table(found: Sequence[Comparison]) -> Iterator[str]:
    yield "| model | metric | batch | context | variant | baseline | median | ratio |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in found:
        if one.kind != "latency":
            continue
        ratio = f"{one.after / one.before:.3f}" if one.before else ""
        named = ("" if part is None else str(part) for part in one.subject)
        cells = (*named, one.variant, f"{one.before:.4g}", f"{one.after:.4g}", ratio)
        yield f"| {' | '.join(cells)} |"


TABLES = {"accuracy": accuracy_table, "latency": latency_table}
