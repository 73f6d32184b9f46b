"""Commands that read results files: `compare` and `report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.report.compare import BASELINE, TABLES, compare
from benchmarks.report.page import build
from benchmarks.rows import results
from benchmarks.rows.kinds import ResultsError


def compare_command(
    files: Annotated[list[Path], typer.Argument(help="results files")],
    baseline: Annotated[str, typer.Option(help="engine:variant")] = BASELINE,
) -> None:
    """Compare every variant with a baseline, item by item where there are items."""
    found = compare(results.read_all(files), baseline)
    if not found:
        raise ResultsError(f"nothing else was measured that {baseline} was: add a variant")
    for kind, table in TABLES.items():
        if any(one.kind == kind for one in found):
            print("\n".join(table(found)), end="\n\n")


def report_command(
    files: Annotated[list[Path], typer.Argument(help="results files")],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder to write")],
    baseline: Annotated[str | None, typer.Option(help="engine:variant of reference")] = None,
) -> None:
    """Write results.jsonl, report.md and report.html."""
    rows = results.read_all(files)
    report = build(rows, baseline)
    output.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    files_written = {
        "results.jsonl": "".join(f"{line}\n" for line in lines),
        "report.md": report.markdown(),
        "report.html": report.html(),
    }
    for name, text in files_written.items():
        (output / name).write_text(text, encoding="utf-8")
        print(output / name)
