"""What the terminal shows of a run: the same statistics as the report. Samples are in the file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from benchmarks.report import summary
from benchmarks.report.cells import median, told
from benchmarks.rows.kinds import Row, label
from benchmarks.rows.merge import merge_rounds

if TYPE_CHECKING:
    from benchmarks.latency.check import Agreement

WIDTH = 130  # where there is no terminal to ask


def console() -> Console:
    found = Console()
    return found if found.is_terminal else Console(width=WIDTH)


def show_latency(rows: Sequence[Row], digest: str, threads: int) -> None:
    """A table per batch and context of one model, and what could not be measured.

    digest, threads: of the run; a file may hold other models and thread counts too
    """
    out = console()
    for table in latency_tables(rows, digest, threads):
        out.print(table)
    for row in rows:
        if row["kind"] == "failure":
            out.print(f"{label(row)} failed ({row['stage']}): {row['reason']}", markup=False)


def latency_tables(rows: Sequence[Row], digest: str, threads: int) -> list[Table]:
    own = merge_rounds(
        row
        for row in rows
        if row["kind"] == "latency" and row["shape_sha256"] == digest and row["threads"] == threads
    )
    probes = summary.bandwidth(rows)
    bandwidth = None if probes is None else probes.median
    footprints = {one.label: one for one in summary.footprints(own)}
    speeds = summary.speeds(own)
    found = []
    for batch, context in sorted({(one.batch, one.context) for one in speeds}):
        table = Table(
            *("engine", "tokens/s", "ms per step p50", "p90", "rounds"),
            *("first token s", "prefill tokens/s", "of the roofline", "peak GB"),
            title=f"batch {batch}, context {context}",
        )
        for one in speeds:
            if (one.batch, one.context) != (batch, context):
                continue
            memory = footprints.get(one.label)
            peak = None if memory is None else memory.metrics.get("peak_rss_bytes")
            table.add_row(
                one.label,
                f"{one.tokens_per_s:.1f}",
                f"{1000 * one.step.median:.1f}",
                f"{1000 * one.step.percentile(0.9):.1f}",
                "" if one.first_token is None else str(len(one.first_token.values)),
                told(median(one.first_token), 3),
                told(median(one.prefill), 0),
                told(one.roofline_share(bandwidth), 2),
                "" if peak is None else f"{max(peak.values) / 1e9:.2f}",
            )
        found.append(table)
    return found


def show_agreements(found: Iterable[Agreement]) -> None:
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
