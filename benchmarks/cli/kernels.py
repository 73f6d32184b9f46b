"""`kernels`: products alone, for every set of kernels, beside the peak of their instruction."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.latency import machine
from benchmarks.latency.kernels import KINDS, ROWS, Settings, measure
from benchmarks.report.kernels import kernel_tables
from benchmarks.report.terminal import console
from benchmarks.rows.results import ResultsFile
from benchmarks.rows.run import run_row
from neuralchat_lite.cli.terminal import warn
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.kernels import _native, runtime
from neuralchat_lite.kernels.cpu import check_threads, choose_isa
from neuralchat_lite.quantization.spellings import checked_group_size
from neuralchat_lite.values import shown


def kernels(
    isa: Annotated[
        list[str] | None, typer.Option(help="A set of kernels (repeatable); else all that run.")
    ] = None,
    weights: Annotated[str, typer.Option(help="Of int4,int8.")] = "int4,int8",
    compute: Annotated[str, typer.Option(help="Of bf16,int8,fp32.")] = "bf16,int8,fp32",
    rows: Annotated[str, typer.Option(help="Rows of activations.")] = ",".join(map(str, ROWS)),
    shape: Annotated[str, typer.Option(help="Outputs x columns.")] = "5632x2048",
    group_size: Annotated[int, typer.Option(help="Columns that share a scale.")] = 32,
    copies: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Matrices in turn; 1 leaves the weights in the cache. Else so many that products "
            "with few rows read them from memory.",
        ),
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; sets, kinds and rows in turn.")] = 5,
    seconds: Annotated[float, typer.Option(min=0, help="Of a sample, at least.")] = 0.02,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new JSON lines file.")
    ] = None,
) -> None:
    """Measure products alone: GOPS and GB/s, beside a register loop of the same instruction."""
    arguments = dict(locals())
    settings = Settings(
        isas=[checked_isa(name) for name in isa or runtime.usable_isas()],
        kinds=chosen_kinds(weights, compute),
        rows=counts(rows),
        **dict(zip(("outputs", "columns"), sides(shape), strict=True)),
        group_size=checked_group_size(group_size),
        copies=copies,
        rounds=rounds,
        seconds=seconds,
    )
    if output is not None and output.exists():
        raise ConfigError(f"{output} exists: give another name")
    runtime.set_threads(check_threads(threads, "--threads"))
    watch = machine.Watch()
    found = measure(settings, warn)
    out = console()
    for table in kernel_tables(found):
        out.print(table)
    # Each set reads memory in its own way, so probes of one set are compared.
    probes = next(row["bandwidths"] for row in found if row["isa"] == settings.isas[0])
    for warning in watch.warnings(probes, threads):
        warn(f"Busy machine: {warning}")
    if output is not None:
        file = ResultsFile(output)
        arguments = {name: value for name, value in arguments.items() if name != "output"}
        for row in (run_row(threads, arguments), *found):
            file.append(row)
        warn(f"written to {output}")


def checked_isa(name: str) -> str:
    return choose_isa(dict(_native.instruction_sets()), name, "--isa").value


def chosen_kinds(weights: str, compute: str) -> list[tuple[str, str]]:
    asked = [(left, right) for left in parts(weights) for right in parts(compute)]
    for kind in asked:
        if kind not in KINDS:
            have = ", ".join(f"{left} x {right}" for left, right in KINDS)
            raise ConfigError(f"there is no product {kind[0]} x {kind[1]}: choose some of {have}")
    return asked


def counts(text: str) -> list[int]:
    if not all(re.fullmatch("[1-9][0-9]{0,5}", part) for part in parts(text)):
        raise ConfigError(f"--rows must be numbers with commas between, as in 1,8, got {text!r}")
    return [int(part) for part in parts(text)]


def sides(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9][0-9]{0,6})x([1-9][0-9]{0,6})", text)
    if found is None:
        raise ConfigError(f"--shape must be OUTPUTSxCOLUMNS, as in 5632x2048, got {shown(text)}")
    return int(found[1]), int(found[2])


def parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]
