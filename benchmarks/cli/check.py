"""`check`: our figures beside those of the engines' own clocks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.latency.check import agreements
from benchmarks.report.terminal import show_agreements
from benchmarks.rows import results


def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Results of `latency`.")],
    llama_bench: Annotated[
        Path | None, typer.Option(help="llama.cpp's own benchmark, to run on the same files.")
    ] = None,
) -> None:
    """Compare our figures of an engine with those of its own clock."""
    show_agreements(agreements(results.read(file), llama_bench))
