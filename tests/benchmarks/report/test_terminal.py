"""The terminal shows the numbers of the report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("scipy", reason="scipy is not installed: pip install '.[bench]'")

from benchmarks.report.summary import speeds
from benchmarks.report.tables import speed_table
from benchmarks.report.terminal import latency_tables, show_latency
from benchmarks.rows.merge import merge_rounds

Rows = Callable[..., dict[str, Any]]
PROBE = {"kind": "probe", "bandwidth_bytes_per_s": 20e9, "threads": 2, "time": "now"}


@pytest.fixture
def rows(latency_row: Rows) -> list[dict[str, Any]]:
    """Two rounds of one case: steps of 10, 20, 30 and 110 ms."""
    return [
        PROBE,
        latency_row([0.01, 0.02]),
        latency_row([0.03, 0.11], round=1),
        latency_row([0.5], "first_token_s"),
        latency_row([2e8], "bytes_per_token", unit="bytes"),
    ]


def shown(rows: list[Any], digest: str = "s", threads: int = 2) -> list[dict[str, str]]:
    """The cells of the terminal's tables, by the heads of their columns."""
    return [
        {str(column.header): str(list(column.cells)[row]) for column in table.columns}
        for table in latency_tables(rows, digest, threads)
        for row in range(table.row_count)
    ]


def test_the_terminal_and_the_report_show_the_same_p90(rows: list[Any]) -> None:
    table = speed_table(speeds(merge_rounds(rows)), 20e9, [])
    [reported] = [dict(zip(table.heads, cells, strict=True)) for cells in table.rows]
    [terminal] = shown(rows)
    # Linear interpolation: 0.9 * 3 = 2.7, so 30 ms + 0.7 * (110 ms - 30 ms).
    assert reported["ms p90"] == "86.00"
    assert terminal["p90"] == "86.0"
    assert float(terminal["ms per step p50"]) == float(reported["ms p50"]) == 25
    assert terminal["of the roofline"] == reported["of the roofline"] == "0.40"
    assert terminal["first token s"] == reported["first token s"] == "0.500"


def test_other_models_and_thread_counts_of_the_file_are_not_shown(
    rows: list[Any], latency_row: Rows
) -> None:
    other = latency_row([9.0], shape_sha256="t")
    more = latency_row([5.0], threads=8)
    assert shown([*rows, other, more]) == shown(rows)


def test_what_is_not_known_is_left_out(latency_row: Rows) -> None:
    [cells] = shown([latency_row([0.5])])
    assert cells["tokens/s"] == "2.0"
    assert {cells[name] for name in ("first token s", "of the roofline", "peak GB")} == {""}


def test_failures_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    names = {"engine": "itrex", "variant": "int4", "model": "1b"}
    failure = {"kind": "failure", **names, "stage": "load", "reason": "[no] AMX", "last_lines": []}
    show_latency([failure], "s", 2)
    assert capsys.readouterr().out == "itrex:int4 failed (load): [no] AMX\n"
