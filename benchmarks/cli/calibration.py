"""`calibration`: the memory and time of calibrated quantizing, and the bytes after a kill."""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.table import Table

from benchmarks.latency.calibration import Process, differing, run, write_texts
from benchmarks.models.kept import cache_root
from benchmarks.models.random_checkpoint import random_model
from benchmarks.models.shapes import SHAPES, shape_name
from benchmarks.report.terminal import console
from neuralchat_lite.cli.terminal import warn
from neuralchat_lite.files.progress import size_text


def calibration(
    shape: Annotated[str, typer.Option(help="Of the random model.")] = "1b",
    algorithm: Annotated[str, typer.Option(help="gptq, autoround, awq or teq.")] = "gptq",
    group_size: Annotated[int, typer.Option(help="Columns that share a scale.")] = 128,
    samples: Annotated[int, typer.Option(min=1, help="Pieces of text.")] = 16,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a piece.")] = 256,
    kill: Annotated[bool, typer.Option(help="Also kill a run, and go on.")] = True,
    seed: Annotated[int | None, typer.Option(help="Where it is killed; else by chance.")] = None,
) -> None:
    """Quantize a random model in a process of its own; kill another one at a random moment of a
    random block, go on with it, and compare every byte."""
    name = shape_name(shape)
    model = random_model(name, cache_root())
    chance = random.Random(seed)
    table = Table("run", "seconds", "peak", "own memory", "blocks")
    with TemporaryDirectory(dir=cache_root()) as folder:
        texts = write_texts(
            Path(folder) / "texts.txt", SHAPES[name]["vocab_size"], 2 * samples * length
        )
        options = ["--algorithm", algorithm, "--group-size", str(group_size)]
        options += ["--calibration", str(texts), "--calibration-samples", str(samples)]
        options += ["--calibration-length", str(length)]

        def add(named: str, done: Process) -> None:
            warn(f"{named}: {done.seconds:.0f} s, peak {size_text(done.peak)}")
            sizes = (size_text(done.peak), size_text(done.own))
            table.add_row(named, f"{done.seconds:.0f}", *sizes, str(done.blocks))

        whole, parts = (Path(folder) / part / "model" for part in ("whole", "parts"))
        whole.parent.mkdir()
        parts.parent.mkdir()
        first = run(model, whole, options)
        add("not interrupted", first)
        if kill:
            block = chance.randrange(SHAPES[name]["num_hidden_layers"])
            moment = chance.uniform(0, first.block_seconds)
            add(f"killed in block {block + 1}", run(model, parts, options, (block, moment)))
            add("gone on", run(model, parts, options))
        console().print(table)
        if kill:
            other = differing(whole, parts)
            print("same bytes" if not other else f"DIFFERENT: {', '.join(other)}")
            raise typer.Exit(1 if other else 0)
