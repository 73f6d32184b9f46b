"""`requests`: many requests, some at a time, on engines that answer several together."""

from __future__ import annotations

import statistics
from typing import Annotated

import typer
from rich.table import Table

from benchmarks.cli.latency import Asked, ModelName, ShapeName, installed_variants, open_model
from benchmarks.engines.environments import python_of
from benchmarks.latency import machine
from benchmarks.latency.requests import Load, Served, serve
from benchmarks.report.terminal import console
from neuralchat_lite.cli.terminal import warn
from neuralchat_lite.kernels import native
from neuralchat_lite.kernels.cpu import check_threads

SERVING = ("neuralchat_lite:int4-int8", "llamacpp:Q4_0", "openvino:int4")


def requests_command(
    engine: Asked = None,
    shape: ShapeName = None,
    model: ModelName = None,
    requests: Annotated[int, typer.Option(min=1, help="Prompts in all.")] = 64,
    at_once: Annotated[int, typer.Option(min=1, help="At the same time.")] = 8,
    context: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = 3,
    threads: Annotated[int | None, typer.Option(help="Default: the physical cores.")] = None,
    limit: Annotated[float, typer.Option(help="Seconds that one run may take.")] = 600.0,
) -> None:
    """Measure tokens a second over many requests, engines taking turns."""
    if threads is not None:
        native.set_threads(check_threads(threads, "--threads"))
    count = int(native.threads().value)
    variants = installed_variants(engine, SERVING)
    measured = open_model(shape or (None if model else "1b"), model)
    load = Load(requests, at_once, context, new_tokens)
    watch, found = machine.Watch(), list[Served]()
    probes = [machine.probe_bandwidth()]
    for one in serve(measured, variants, load, count, rounds, python_of, limit):
        warn(f"{one.variant.label}: {one.seconds:.1f} s, {one.share:.0%} of its steps")
        found.append(one)
        probes.append(machine.probe_bandwidth())
    console().print(table(load, found))
    for warning in watch.warnings(probes, count):
        warn(f"Busy machine: {warning}")


def table(load: Load, found: list[Served]) -> Table:
    """Medians of the rounds; the range of what is a ratio within one round."""
    shown = Table(
        *("engine", "seconds", "new tokens/s", "share of its steps", "beside the first"),
        title=f"{load.requests} requests of {load.context} + {load.new_tokens} tokens, "
        f"{load.at_once} at once",
    )
    by_label: dict[str, list[Served]] = {}
    for one in found:
        by_label.setdefault(one.variant.label, []).append(one)
    first = next(iter(by_label.values()))
    for label, turns in by_label.items():
        seconds = statistics.median(one.seconds for one in turns)
        ratios = [a.seconds / b.seconds for a, b in zip(first, turns, strict=True)]
        shown.add_row(
            label,
            f"{seconds:.1f}",
            f"{load.requests * load.new_tokens / seconds:.0f}",
            f"{statistics.median(one.share for one in turns):.2f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        )
    return shown
