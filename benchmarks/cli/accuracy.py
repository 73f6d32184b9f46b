"""`accuracy`: which models, variants and tasks are measured.

python -m benchmarks accuracy MODEL -o RUN.jsonl
python -m benchmarks accuracy MODEL -o RUN.jsonl --data DIR --limit 200 --tasks gsm8k,nano
"""

from __future__ import annotations

import functools
import logging
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.accuracy.lm_eval_tasks import LEADERBOARD
from benchmarks.accuracy.measures import MEASURES, Asked
from benchmarks.accuracy.opening import DEFAULT, REFERENCE, chosen, model_digest, open_variant
from benchmarks.accuracy.run import console, measure
from benchmarks.engines.environments import installed
from benchmarks.rows.results import ResultsFile
from benchmarks.rows.run import run_row
from neuralchat_lite.cli.terminal import warn
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.kernels import native

PACKAGES = ("lm_eval", "datasets", "scipy")
DEFAULT_TASKS = ",".join(LEADERBOARD)


def checked_tasks(names: str) -> list[str]:
    tasks = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in tasks if name not in MEASURES]
    if unknown or not tasks:
        raise ConfigError(
            f"unknown task {', '.join(unknown) or '(none is named)'}: expected some of "
            f"{', '.join(MEASURES)}"
        )
    return tasks


def accuracy_command(
    models: Annotated[list[str], typer.Argument(help="model folders or hub names")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="results; what they hold is not measured again")
    ],
    tasks: Annotated[str, typer.Option(help=f"some of: {', '.join(MEASURES)}")] = DEFAULT_TASKS,
    variants: Annotated[
        str | None,
        typer.Option(
            help="engines, or engine:variant, with commas between; without it, "
            f"{', '.join(DEFAULT)}, as far as they are installed"
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="folder of local JSON lines; without it, the hub's sets")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="folder of texts; 'text' beside --data when left out")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="items of each task")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="tokens of each text")] = 8192,
    context_length: Annotated[int | None, typer.Option(help="instead of the model's own")] = None,
) -> None:
    """Score quantized variants and other engines on the same items."""
    names = checked_tasks(tasks)
    picked = installed(chosen(",".join(DEFAULT)), warn) if variants is None else chosen(variants)
    if texts is None and data is not None:
        texts = data.parent / "text"
    for name in ("lm_eval", "transformers"):  # they warn of every prompt that is cut
        logging.getLogger(name).setLevel(logging.ERROR)
    arguments = {
        "models": models,
        "tasks": names,
        "variants": [variant.label for variant in picked],
        "limit": limit,
        "tokens": tokens,
    }
    file = ResultsFile(output)
    file.append(run_row(int(native.threads().value), arguments, PACKAGES))
    try:
        for model in models:
            sha256 = model_digest(model)
            with tempfile.TemporaryDirectory(prefix="neuralchat-accuracy-") as scratch:
                asked = Asked(
                    data,
                    texts,
                    limit,
                    tokens,
                    Path(scratch),
                    functools.partial(open_variant, REFERENCE, model, sha256, context_length),
                )
                for variant in picked:
                    console.print(f"[bold]{model}[/] {variant.label}", highlight=False)
                    measure(
                        variant,
                        model,
                        names,
                        asked,
                        file,
                        sha256=sha256,
                        context_length=context_length,
                    )
    except KeyboardInterrupt:
        console.print(f"interrupted: {output} keeps what was measured; the same command goes on")
        raise
