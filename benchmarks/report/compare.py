"""One engine against another, measurement by measurement, or a refusal to compare.

Two rows are about the same thing when model, task and metric (or batch and context) agree. They
may be compared only when data, prompts, shapes and threads were the same too: where these differ
there is no answer, and `compare` says so instead of giving one.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.accuracy.paired import Paired, compare_items
from benchmarks.rows import results
from benchmarks.rows.results import ResultsError, Row

BASELINE = "transformers:bf16"
NOT_A_MEAN = {"kl_p99"}  # whose items say nothing about the error of the value

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


def label(row: Row) -> str:
    return f"{row['engine']}:{row['variant']}"


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


def subject(row: Row) -> tuple[Any, ...]:
    return (row["kind"], *(row[name] for name in SUBJECT[row["kind"]]))


def merge_rounds(rows: Iterable[Row]) -> list[Row]:
    """Rows of several rounds as one, with all samples; of accuracy, the newest of equal ones.

    Raises ResultsError where one variant was measured twice on different data.
    """
    merged: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if row["kind"] not in SUBJECT:
            continue
        place = (label(row), subject(row))
        earlier = merged.get(place)
        if earlier is None:
            merged[place] = row
            continue
        refuse_differences(earlier, row)
        if row["kind"] == "latency":
            row = {**earlier, "samples": [*earlier["samples"], *row["samples"]]}
        merged[place] = row
    return list(merged.values())


def refuse_differences(left: Row, right: Row) -> None:
    differing = [name for name in MUST_AGREE[left["kind"]] if left[name] != right[name]]
    if differing:
        listed = "; ".join(f"{n}: {left[n]!s:.12} and {right[n]!s:.12}" for n in differing)
        what = ", ".join(str(part) for part in subject(left)[1:] if part is not None)
        raise ResultsError(
            f"{what}: {label(left)} and {label(right)} cannot be compared, they differ in "
            f"{listed}. Measure both with the same model, data, --limit and --threads, or compare "
            "them in files of their own"
        )


def compared(before: Row, after: Row) -> Comparison:
    if before["kind"] == "accuracy":
        left, right = before["value"], after["value"]
        mean = before["metric"] not in NOT_A_MEAN
        paired = compare_items(before["items"], after["items"]) if mean else None
    else:
        left, right = (statistics.median(row["samples"]) for row in (before, after))
        paired = None
    what = subject(after)
    return Comparison(what[0], what[1:], label(after), left, right, paired)


# ---- as tables ----


def accuracy_table(found: Sequence[Comparison]) -> Iterator[str]:
    """Markdown lines. Differences are those of the items: of a perplexity, of losses in nats."""
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
        f"{paired.low:+.3g} to {paired.high:+.3g}",
        "" if paired.lost is None else f"-{paired.lost} +{paired.won}",
        "" if paired.p is None else f"{paired.p:.2g}",
    )


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


def compare_command(
    files: Annotated[list[Path], typer.Argument(help="results files")],
    baseline: Annotated[str, typer.Option(help="engine:variant")] = BASELINE,
) -> None:
    """Compare every variant with a baseline, item by item where there are items."""
    found = compare([row for file in files for row in results.read(file)], baseline)
    if not found:
        raise ResultsError(f"nothing else was measured that {baseline} was: add a variant")
    for kind, table in TABLES.items():
        if any(one.kind == kind for one in found):
            print("\n".join(table(found)), end="\n\n")
