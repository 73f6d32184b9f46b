"""Scores of one variant: a row for each task, or for its failure.

A model is opened once for each variant and asked every measure. What fails becomes a `failure`
row, and the rest goes on. What the file holds already is not measured again.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Sequence

from rich.console import Console

from benchmarks.accuracy.measures import MEASURES, Asked
from benchmarks.accuracy.opening import conditions_of, open_variant
from benchmarks.engines.table import Variant
from benchmarks.models.model import model_name
from benchmarks.rows.kinds import KEYS
from benchmarks.rows.results import ResultsFile
from neuralchat_lite.errors import NeuralchatError

console = Console(stderr=True)


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
