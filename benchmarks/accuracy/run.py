"""What quantizing costs: every engine's scores on the same items, to be compared one by one.

python -m benchmarks accuracy MODEL -o RUN.jsonl
python -m benchmarks accuracy MODEL -o RUN.jsonl --data DIR --limit 200 --tasks gsm8k,nano

A model is opened once for each variant and asked every measure. What fails becomes a row that
says so, and the rest goes on; what the file holds already is not measured again.
"""

from __future__ import annotations

import functools
import gc
import logging
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.accuracy.lm_eval_tasks import LEADERBOARD
from benchmarks.accuracy.measures import MEASURES, Asked
from benchmarks.accuracy.variants import (
    DEFAULT,
    REFERENCE,
    Variant,
    chosen,
    conditions_of,
    installed,
    model_name,
    open_variant,
)
from benchmarks.rows.kinds import KEYS
from benchmarks.rows.results import ResultsFile
from benchmarks.rows.run import run_row
from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.checkpoints.hub import resolve
from neuralchat_lite.checkpoints.identity import identify
from neuralchat_lite.cli.terminal import warn
from neuralchat_lite.errors import ConfigError, NeuralchatError
from neuralchat_lite.files.digests import digest_of
from neuralchat_lite.kernels import native

console = Console(stderr=True)
PACKAGES = ("lm_eval", "datasets", "scipy")
DEFAULT_TASKS = ",".join(LEADERBOARD)


def model_digest(model: str) -> str:
    """sha256 over what a checkpoint holds: weights, config, tokenizer."""
    found = resolve(model, None, None)
    return digest_of(identify(open_checkpoint(found.folder), hub=found.hub))


def measure(
    variant: Variant,
    model: str,
    tasks: Sequence[str],
    asked: Asked,
    file: ResultsFile,
    *,
    sha256: str,
    context_length: int | None = None,
) -> None:
    """Open a variant and write a row for each task, or for its failure."""
    common = {
        "engine": variant.engine,
        "variant": variant.name,
        "model": model_name(model),
    }

    def failed(stage: str, error: Exception) -> None:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        # What a user can mend says so itself; of anything else the place matters too.
        place = [] if isinstance(error, NeuralchatError) else traceback.format_exception(error)[-3:]
        file.append(
            {
                "kind": "failure",
                **common,
                "stage": stage,
                "reason": reason,
                "last_lines": "".join(place).splitlines(),
            }
        )
        console.print(f"  [red]{stage}[/]: {reason}", highlight=False)

    todo = [task for task in tasks if not is_measured(task, variant, sha256, asked, file)]
    if not todo:
        console.print("  measured already")
        return
    try:
        opened = open_variant(variant, model, sha256, context_length)
    except Exception as error:  # whatever an engine cannot do is a result
        failed("accuracy: load", error)
        return
    for task in todo:
        start = time.perf_counter()
        try:
            for row in MEASURES[task](opened, task, asked):
                seconds = round(time.perf_counter() - start, 2)
                conditions = {**conditions_of(opened), **row["conditions"], "seconds": seconds}
                limit = asked.tokens if "/" in task else asked.limit
                fields = {"model_sha256": sha256, "task": task, "limit": limit}
                file.append(
                    {"kind": "accuracy", **common, **fields, **row, "conditions": conditions}
                )
                console.print(
                    f"  {task} {row['metric']}: {row['value']:.4f}, {row['count']} items, "
                    f"{seconds:.0f} s",
                    highlight=False,
                )
        except Exception as error:
            failed(f"accuracy: {task}", error)
    opened.close()
    del opened
    gc.collect()


def is_measured(task: str, variant: Variant, sha256: str, asked: Asked, file: ResultsFile) -> bool:
    """Whether a file holds this task of this variant, whatever its metrics and shots."""
    limit = asked.tokens if "/" in task else asked.limit
    wanted = (variant.engine, variant.name, sha256, task, limit)
    fields = KEYS["accuracy"]
    places = [fields.index(n) for n in ("engine", "variant", "model_sha256", "task", "limit")]
    return any(
        kind == "accuracy" and tuple(values[place] for place in places) == wanted
        for kind, *values in file.done
    )


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
    picked = installed(DEFAULT, warn) if variants is None else chosen(variants)
    if texts is None and data is not None:
        texts = data.parent / "text"
    for name in ("lm_eval", "transformers"):  # they warn of every prompt that is cut
        logging.getLogger(name).setLevel(logging.ERROR)
    arguments = {
        "models": models,
        "tasks": names,
        "variants": [str(variant) for variant in picked],
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
                    console.print(f"[bold]{model}[/] {variant}", highlight=False)
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
