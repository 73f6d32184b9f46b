"""`agreement`: our log-likelihoods beside those of the harness' own backend, as a table.

python -m benchmarks agreement MODEL --data DIR            200 items of each task
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.accuracy.agreement import PRECISIONS, TASKS, TOLERANCE, backends, compare_task
from benchmarks.rows.kinds import ResultsError
from neuralchat_lite.errors import ConfigError, PromptError


def agreement_command(
    model: Annotated[str, typer.Argument(help="a checkpoint's folder or hub name")],
    data: Annotated[Path, typer.Option(help="folder of local JSON lines")],
    limit: Annotated[int, typer.Option(min=1, help="items of each task")] = 200,
    tasks: Annotated[str, typer.Option(help="names with commas between")] = ",".join(TASKS),
    precision: Annotated[str, typer.Option(help="of the harness' own: fp32 or fp64")] = "fp32",
) -> None:
    """Compare every log-likelihood with the evaluation harness' own backend."""
    if precision not in PRECISIONS:
        raise ConfigError(f"precision must be fp32 or fp64, got {precision!r}")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # of little models, more only wait for each other
    print("| task | items | requests | cut | largest difference | our score | its score | differ |")
    print("|---|---|---|---|---|---|---|---|")
    failed = []
    with tempfile.TemporaryDirectory(prefix="neuralchat-agreement-") as scratch:
        ours, theirs = backends(model, Path(scratch), precision)
        for name in tasks.split(","):
            try:
                found = compare_task(name, data, limit, ours, theirs)
            except PromptError as error:  # as where a text is asked for that no context holds
                print(f"| {name} | not asked: {error} |", flush=True)
                continue
            print(
                f"| {name} | {found.items} | {found.requests} | {found.cut} | "
                f"{found.largest:.2g} | {found.ours:.6f} | {found.theirs:.6f} | "
                f"{found.items_differ} |",
                flush=True,
            )
            if not found.holds:
                failed.append(name)
    if failed:
        raise ResultsError(f"{', '.join(failed)} do not agree to {TOLERANCE}: see the table")
