"""`latency`: which cases, variants and model are measured, and the summary at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.engines.environments import environment_of, installed, python_of
from benchmarks.engines.table import Variant, chosen_variants, file_variants
from benchmarks.latency import machine
from benchmarks.latency.bench import Bench
from benchmarks.latency.cases import PROFILES, Case, Profile
from benchmarks.models.kept import cache_root
from benchmarks.models.model import Model, model_name
from benchmarks.models.random_checkpoint import random_model
from benchmarks.models.shapes import shape_name
from benchmarks.report.terminal import show_latency
from neuralchat_lite.checkpoints import is_source_file
from neuralchat_lite.checkpoints.hub import resolve
from neuralchat_lite.cli.terminal import warn
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.files.progress import size_text
from neuralchat_lite.kernels import native
from neuralchat_lite.kernels.cpu import check_threads

Asked = Annotated[
    list[str] | None,
    typer.Option("--engine", "-e", help="engine or engine:variant (repeatable)."),
]
ShapeName = Annotated[
    str | None, typer.Option("--shape", help="Random weights: mistral-7b, 1b, 135m, 100m, 10m.")
]
ModelName = Annotated[
    str | None, typer.Option("--model", help="A real checkpoint: folder, hub name, GGUF file.")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="A new JSON lines file.")]
Resume = Annotated[Path | None, typer.Option(help="Go on with this file of an earlier run.")]
Threads = Annotated[int | None, typer.Option(help="Default: the physical cores that we may use.")]
Quick = Annotated[bool, typer.Option("--quick", help="Three minutes: us and transformers, 100m.")]
Thorough = Annotated[bool, typer.Option("--thorough", help="A night: everything, seven rounds.")]
Contexts = Annotated[str | None, typer.Option(help="Only these, as in 32,512.")]
Batches = Annotated[str | None, typer.Option(help="Only these, as in 1,4.")]
Rounds = Annotated[int | None, typer.Option(help="Rounds of every case.", min=1)]
NewTokens = Annotated[int | None, typer.Option(help="Tokens of every case.", min=2)]
Limit = Annotated[float, typer.Option(help="Seconds that one run of a case may take.")]
Minutes = Annotated[
    float | None, typer.Option(help="Begin no turn after so long; --resume goes on.", min=0)
]
Pin = Annotated[bool, typer.Option("--pin", help="Stay on one CPU of each of THREADS cores.")]


def latency(
    engine: Asked = None,
    shape: ShapeName = None,
    model: ModelName = None,
    output: Output = None,
    resume: Resume = None,
    quick: Quick = False,
    thorough: Thorough = False,
    contexts: Contexts = None,
    batches: Batches = None,
    rounds: Rounds = None,
    new_tokens: NewTokens = None,
    threads: Threads = None,
    limit: Limit = 300.0,
    minutes: Minutes = None,
    pin: Pin = False,
) -> None:
    """Measure load, first token, time per token and memory, engines taking turns."""
    arguments = dict(locals())
    if quick and thorough:
        raise ConfigError("--quick and --thorough exclude each other: give one of them")
    profile = PROFILES["quick" if quick else "thorough" if thorough else "full"]
    cases = chosen_cases(profile, contexts, batches, rounds, new_tokens)
    if threads is not None:
        native.set_threads(check_threads(threads, "--threads"))
    threads = int(native.threads().value)
    if pin:
        machine.pin(threads)
    path = results_path(output, resume)
    if model is None or not is_source_file(Path(model)):
        variants = installed_variants(engine, profile.variants)
    else:
        variants = installed_variants(engine, [each.engine for each in file_variants()], file=True)
    measured = open_model(shape or (None if model else profile.shape), model)
    watch = machine.Watch()
    seconds = math.inf if minutes is None else 60 * minutes
    bench = Bench(path, measured, variants, cases, threads, python_of, limit, seconds, warn)
    try:
        bench.run({name: value for name, value in arguments.items() if is_plain(value)})
    except KeyboardInterrupt:
        warn(f"interrupted; go on with --resume {path}")
        raise
    finally:
        rows = bench.file.rows
        show_latency(rows, measured.digest, threads)
        probes = [row["bandwidth_bytes_per_s"] for row in rows if row["kind"] == "probe"]
        for warning in watch.warnings(probes, threads):
            warn(f"Busy machine: {warning}")
        warn(f"written to {path}")


def installed_variants(
    asked: list[str] | None, default: Sequence[str], *, file: bool = False
) -> list[Variant]:
    """The variants that were asked for, else those of `default` whose engines are installed.

    file: for a GGUF file, which a few engines read, instead of a checkpoint
    Raises EngineError where an engine that was asked for is not installed.
    """
    if asked:
        found = chosen_variants(asked, file=file)
        for name in {variant.engine for variant in found}:
            environment = environment_of(name)
            if environment is not None:
                environment.require_ready()
        return found
    return installed(chosen_variants(default, file=file), warn)


def chosen_cases(
    profile: Profile,
    contexts: str | None,
    batches: str | None,
    rounds: int | None,
    new_tokens: int | None,
) -> list[Case]:
    """The profile's cases, changed as asked."""
    wanted_contexts, wanted_batches = numbers(contexts), numbers(batches)
    changes: dict[str, Any] = {"rounds": rounds, "new_tokens": new_tokens}
    changes = {name: value for name, value in changes.items() if value is not None}
    found = [
        replace(case, **changes)
        for case in profile.cases
        if (not wanted_contexts or case.context in wanted_contexts)
        and (not wanted_batches or case.batch in wanted_batches)
    ]
    if not found:
        have = "; ".join(case.name for case in profile.cases)
        raise ConfigError(f"no case has these contexts and batches: this profile has {have}")
    return found


def numbers(text: str | None) -> list[int]:
    if text is None:
        return []
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ConfigError(f"expected numbers with commas between, as in 32,512, got {text!r}")
    return [int(part) for part in parts]


def results_path(output: Path | None, resume: Path | None) -> Path:

    if output is not None and resume is not None:
        raise ConfigError("--output is a new file and --resume an old one: give one of them")
    if resume is not None:
        if not resume.exists():
            raise ConfigError(f"{resume} is missing: give a file that `latency` has written")
        return resume
    path = output or Path(time.strftime("latency-%Y%m%d-%H%M%S.jsonl"))
    if path.exists():
        raise ConfigError(f"{path} exists: go on with it by --resume, or give another name")
    return path


def open_model(shape: str | None, model: str | None) -> Model:
    """The checkpoint to measure: a shape's, made now if it is not there, or a real one."""
    if (shape is None) == (model is None):
        raise ConfigError("--shape makes random weights and --model takes real ones: give one")
    root = cache_root()
    if model is not None:
        found = resolve(model, None, None)
        return Model.at(model_name(model), found.folder, root)
    assert shape is not None
    name = shape_name(shape)
    return Model.at(name, random_model(name, root, say_progress(name)), root)


def say_progress(name: str) -> Any:
    said = [False]

    def progress(done: int, total: int) -> None:
        if not said[0]:
            warn(f"writing random weights of the shape {name} ({size_text(total)})")
            said[0] = True

    return progress


def is_plain(value: Any) -> bool:
    return value is not None and isinstance(value, bool | int | float | str | list)
