"""Tables of products alone, one for each set of kernels: rates beside what bounds them."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from benchmarks.latency.kernels import rates
from benchmarks.rows.kinds import KernelRow
from neuralchat_lite.files.progress import size_text

FEW_ROWS = 16  # with more, the weights' bytes bound nothing


@dataclass(frozen=True)
class Rate:
    """Medians over the rounds. A share is that of its round, as other work on the machine slows
    both down."""

    operations: float  # a second
    weights: float  # bytes a second
    peak: float  # operations a second
    peak_share: float
    bandwidth_share: float


def rate_of(row: KernelRow) -> Rate:
    found = list(rates(row))
    median = statistics.median
    return Rate(
        operations=median(operations for operations, _ in found),
        weights=median(weights for _, weights in found),
        peak=median(row["peaks"]),
        peak_share=median(
            operations / peak for (operations, _), peak in zip(found, row["peaks"], strict=True)
        ),
        bandwidth_share=median(
            weights / bandwidth
            for (_, weights), bandwidth in zip(found, row["bandwidths"], strict=True)
        ),
    )


def kernel_tables(rows: Sequence[KernelRow]) -> list[Table]:
    return [
        kernel_table(isa, list(of_isa))
        for isa, of_isa in itertools.groupby(rows, lambda row: row["isa"])
    ]


def kernel_table(isa: str, rows: Sequence[KernelRow]) -> Table:
    first = rows[0]
    bandwidth = statistics.median(itertools.chain(*(row["bandwidths"] for row in rows)))
    stored = {
        f"{row['weights']}: {row['copies']} x {size_text(row['weight_bytes'])} in turn": None
        for row in rows
    }
    table = Table(
        *("weights", "activations", "instruction", "rows"),
        *("GOPS", "peak", "share", "GB/s of weights", "of the bandwidth"),
        title=(
            f"{isa}: {first['outputs']} outputs x {first['columns']} columns, groups of "
            f"{first['group_size']}, {first['threads']} threads, {size_text(bandwidth)}/s"
        ),
        caption=f"{', '.join(stored)}; medians of {len(first['samples'])} rounds",
    )
    kinds = itertools.groupby(rows, lambda row: (row["weights"], row["compute"]))
    for (weights, compute), of_kind in kinds:
        for row in of_kind:
            rate = rate_of(row)
            table.add_row(
                weights,
                compute,
                f"{row['instruction']} ({row['instruction_set']})",
                str(row["rows"]),
                f"{rate.operations / 1e9:.1f}",
                f"{rate.peak / 1e9:.0f}",
                f"{rate.peak_share:.0%}",
                f"{rate.weights / 1e9:.2f}",
                f"{rate.bandwidth_share:.0%}" if row["rows"] <= FEW_ROWS else "",
            )
        table.add_section()
    return table
