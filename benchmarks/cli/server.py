"""`server`: many clients of `neuralchat-lite serve`, beside threads in Python."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace
from typing import Annotated

import typer
from rich.table import Table

import neuralchat_lite as ncl
from benchmarks.latency import machine
from benchmarks.report.terminal import console
from benchmarks.server.load import (
    SERVED,
    Load,
    Ran,
    by_clients,
    by_threads,
    require_locust,
    serving,
)
from neuralchat_lite.cli.terminal import warn
from neuralchat_lite.kernels import native

THREADS = "threads"


def server(
    model: Annotated[str, typer.Argument(help="A folder, GGUF file or hub name.")],
    at_once: Annotated[
        list[int] | None, typer.Option(min=1, help="Clients (repeatable). Default: 8 and 32.")
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="In each turn.")] = 200,
    words: Annotated[int, typer.Option(min=1, help="Of a prompt; about as many tokens.")] = 120,
    new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = 3,
    url: Annotated[
        str | None,
        typer.Option(help="Of another server with these weights, such as http://localhost:8080."),
    ] = None,
    url_model: Annotated[str, typer.Option(help="What that one calls the model.")] = SERVED,
    seed: Annotated[int, typer.Option(help="Of the words.")] = 0,
) -> None:
    """Send completions by locust, whole and as streams, and the same load by threads in Python."""
    require_locust()
    load, chance, found = Load(requests, words, new_tokens), random.Random(seed), list[Ran]()
    watch, probes = machine.Watch(), [machine.probe_bandwidth()]

    def add(one: Ran) -> None:
        warn(f"{one.how}, {one.at_once} at once: {one.speed:.0f} tokens/s")
        found.append(one)
        probes.append(machine.probe_bandwidth())

    loaded = ncl.load(model, compute_dtype="auto")
    try:
        with serving(model, ()) as address:
            by_clients(address, SERVED, load.prompts(chance)[:8], load, 8, stream=True)  # warm
            for _ in range(rounds):
                for clients in at_once or (8, 32):
                    add(by_threads(loaded, load.prompts(chance), load, clients))
                    for stream in (False, True):
                        prompts = load.prompts(chance)
                        add(by_clients(address, SERVED, prompts, load, clients, stream))
                        if url is not None:
                            other = by_clients(url, url_model, prompts, load, clients, stream)
                            add(replace(other, how=f"other server, {other.how}"))
    finally:
        loaded.close()
    console().print(table(load, found))
    for warning in watch.warnings(probes, int(native.threads().value)):
        warn(f"Busy machine: {warning}")


def table(load: Load, found: list[Ran]) -> Table:
    """Medians of the rounds; the range of what is a ratio within one round."""
    shown = Table(
        *("at once", "how", "tokens/s", "beside threads", "first part p50, p99", "answers"),
        title=f"{load.requests} requests of {load.words} words + {load.new_tokens} tokens",
    )
    for clients in dict.fromkeys(one.at_once for one in found):
        turns: dict[str, list[Ran]] = {}
        for one in found:
            if one.at_once == clients:
                turns.setdefault(one.how, []).append(one)
        for how, runs in turns.items():
            ratios = [a.speed / b.speed for a, b in zip(runs, turns[THREADS], strict=True)]
            statuses: dict[int, int] = {}
            for run in runs:
                for status, count in run.statuses.items():
                    statuses[status] = statuses.get(status, 0) + count
            shown.add_row(
                str(clients),
                how,
                f"{statistics.median(run.speed for run in runs):.0f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                times_of(runs),
                ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items())),
            )
    return shown


def times_of(runs: list[Ran]) -> str:
    """Seconds to the first part of a stream: medians over the rounds."""
    streams = [run for run in runs if run.first_s]
    if not streams:
        return ""
    medians = [statistics.median(run.first(part) for run in streams) for part in (0.5, 0.99)]
    return ", ".join(f"{seconds:.2f} s" for seconds in medians)
