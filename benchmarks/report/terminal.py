"""What the terminal shows of a run: medians. The samples are in the file."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

Row = Mapping[str, Any]
WIDTH = 130  # where there is no terminal to ask


def console() -> Console:
    found = Console()
    return found if found.is_terminal else Console(width=WIDTH)


def samples_of(rows: Iterable[Row], **wanted: Any) -> list[float]:
    """All samples of the rows that have these values."""
    return [
        sample
        for row in rows
        if row["kind"] == "latency" and all(row[name] == value for name, value in wanted.items())
        for sample in row["samples"]
    ]


def percentile(samples: Sequence[float], share: float) -> float:
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def roofline_share(rows: Sequence[Row], **which: Any) -> float | None:
    """(bytes per token / median time) / median bandwidth, None where one of them is missing."""
    times = samples_of(rows, metric="time_per_token_s", **which)
    sizes = samples_of(rows, metric="bytes_per_token", **which)
    probes = [row["bandwidth_bytes_per_s"] for row in rows if row["kind"] == "probe"]
    if not (times and sizes and probes):
        return None
    return sizes[0] / statistics.median(times) / statistics.median(probes)


def show_latency(rows: Sequence[Row], digest: str) -> None:
    """A table per batch and context, and what could not be measured."""
    out = console()
    timed = [
        row
        for row in rows
        if row["kind"] == "latency"
        and row["metric"] == "time_per_token_s"
        and row["shape_sha256"] == digest
    ]
    for batch, context in sorted({(row["batch"], row["context"]) for row in timed}):
        table = Table(
            *("engine", "tokens/s", "ms per step p50", "p90", "rounds"),
            *("first token s", "prefill tokens/s", "of the roofline", "peak GB"),
            title=f"batch {batch}, context {context}",
        )
        for engine, variant in unique((row["engine"], row["variant"]) for row in timed):
            mine = {"engine": engine, "variant": variant, "shape_sha256": digest}
            case = {**mine, "batch": batch, "context": context}
            times = samples_of(rows, metric="time_per_token_s", **case)
            if not times:
                continue
            first = samples_of(rows, metric="first_token_s", **case)
            prefill = samples_of(rows, metric="prefill_tokens_per_s", **case)
            peaks = samples_of(rows, metric="peak_rss_bytes", **mine)
            share = roofline_share(rows, **case)
            table.add_row(
                f"{engine}:{variant}",
                f"{batch / statistics.median(times):.1f}",
                f"{1000 * statistics.median(times):.1f}",
                f"{1000 * percentile(times, 0.9):.1f}",
                str(len(first)),
                f"{statistics.median(first):.3f}",
                f"{statistics.median(prefill):.0f}",
                "" if share is None else f"{share:.2f}",
                f"{max(peaks) / 1e9:.2f}" if peaks else "",
            )
        out.print(table)
    for row in rows:
        if row["kind"] == "failure":
            out.print(
                f"{row['engine']}:{row['variant']} failed ({row['stage']}): {row['reason']}",
                markup=False,
            )


def unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def show_agreements(found: Iterable[Any]) -> None:
    """found: `check.Agreement`s"""
    table = Table("what", "ours", "the engine's own", "ratio", "")
    for agreement in found:
        table.add_row(
            agreement.what,
            f"{agreement.ours:.4g}",
            f"{agreement.own:.4g}",
            f"{agreement.ratio:.3f}",
            "agree" if agreement.agrees else "DIFFER by more than 10 %",
        )
    console().print(table)
