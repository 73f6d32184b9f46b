"""`python -m benchmarks`: set engines up, measure them, clean up. Heavy imports wait."""

from __future__ import annotations

import math
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.engines.table import ENGINES, Variant, chosen_variants
from neuralchat_lite.cli.terminal import size_text, warn
from neuralchat_lite.errors import ConfigError, NeuralchatError

if TYPE_CHECKING:
    from benchmarks.latency.cases import Case, Profile
    from benchmarks.models.model import Model

INPUT_ERROR, INTERRUPTED = 2, 130

app = typer.Typer(
    name="benchmarks",
    help="Engines side by side on this machine: latency, memory and accuracy.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

EngineNames = Annotated[list[str], typer.Argument(metavar="ENGINE…", help="Names as in `list`.")]
Asked = Annotated[
    list[str] | None,
    typer.Option("--engine", "-e", help="engine or engine:variant (repeatable)."),
]
ShapeName = Annotated[
    str | None, typer.Option("--shape", help="Random weights: mistral-7b, 1b, 100m, 10m.")
]
ModelName = Annotated[
    str | None, typer.Option("--model", help="A real checkpoint: folder or hub name.")
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


@app.command("list")
def list_engines() -> None:
    """Show engines, their variants, and which are installed."""
    from rich.table import Table

    from benchmarks.engines.environments import environment_of
    from benchmarks.report.terminal import console
    from neuralchat_lite.environments.environment import STATES

    table = Table("engine", "variants", "environment", "to download", "on disk", "not here because")
    for name, engine in ENGINES.items():
        environment = environment_of(name)
        if environment is None:
            table.add_row(name, " ".join(engine.variants), "this one", "", "", "")
            continue
        download, disk = environment.sizes(with_cuda=False)
        table.add_row(
            name,
            " ".join(engine.variants),
            STATES[environment.state()],
            download or "unknown",
            disk or "unknown",
            "; ".join(environment.obstacles()),
        )
    console().print(table)


@app.command()
def setup(
    engines: EngineNames,
    python: Annotated[str | None, typer.Option(help="The interpreter to make it of.")] = None,
    torch_index: Annotated[
        str | None, typer.Option(help="An index of CPU builds of torch.")
    ] = None,
    stub_cuda: Annotated[
        bool, typer.Option("--stub-cuda", help="Stand-ins for CUDA's libraries.")
    ] = False,
) -> None:
    """Make the environments of engines; the sizes are said first."""
    from benchmarks.engines.environments import environment_of

    for name in engines:
        require_engine(name)
        environment = environment_of(name)
        if environment is None:
            warn(f"{name} runs in this environment: nothing to do")
        else:
            environment.setup(python=python, torch_index=torch_index, stub_cuda=stub_cuda, say=warn)


@app.command()
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
    from benchmarks.engines.environments import python_of
    from benchmarks.latency import machine
    from benchmarks.latency.bench import Bench
    from benchmarks.latency.cases import PROFILES
    from benchmarks.report.terminal import show_latency
    from neuralchat_lite.kernels import native

    arguments = dict(locals())
    if quick and thorough:
        raise ConfigError("--quick and --thorough exclude each other: give one of them")
    profile = PROFILES["quick" if quick else "thorough" if thorough else "full"]
    cases = chosen_cases(profile, contexts, batches, rounds, new_tokens)
    variants = installed_variants(engine, profile)
    if threads is not None:
        native.set_threads(threads)
    threads = int(native.threads().value)
    if pin:
        machine.pin(threads)
    path = results_path(output, resume)
    measured = open_model(shape or (None if model else profile.shape), model)
    start = machine.CpuTime.now()
    load_average = machine.load_average()
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
        steal = machine.CpuTime.now().steal_share_since(start)
        for warning in machine.busy_warnings(probes, steal, load_average, threads):
            warn(f"Busy machine: {warning}")
        warn(f"written to {path}")


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Results of `latency`.")],
    llama_bench: Annotated[
        Path | None, typer.Option(help="llama.cpp's own benchmark, to run on the same files.")
    ] = None,
) -> None:
    """Compare our figures of an engine with those of its own clock."""
    from benchmarks.latency.check import agreements
    from benchmarks.report.terminal import show_agreements
    from benchmarks.rows import results

    show_agreements(agreements(results.read(file), llama_bench))


@app.command()
def clean() -> None:
    """Delete the random models and converted files of benchmarks."""
    from benchmarks.models.kept import cache_root, remove_models

    freed = remove_models(cache_root())
    print(f"{size_text(freed)} freed in {cache_root()}")


# Commands that have parameters of their own and take seconds to import: name -> (where, help)
LATER = {
    "accuracy": ("benchmarks.accuracy.run:accuracy_command", "Score variants on the same items."),
    "compare": ("benchmarks.report.compare:compare_command", "Compare variants with a baseline."),
    "agreement": (
        "benchmarks.accuracy.agreement:agreement_command",
        "Hold ours against lm_eval's own.",
    ),
    "report": (
        "benchmarks.report.page:report_command",
        "Write results as one file, table and page.",
    ),
}


def add_later(name: str, where: str, help: str) -> None:
    """Add a command that is imported when it is called, its --help included."""
    settings = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

    @app.command(name, help=help, context_settings=settings)
    def call(context: typer.Context) -> Any:
        module, _, function = where.partition(":")
        command = typer.Typer(add_completion=False, rich_markup_mode="rich")
        try:
            command.command()(getattr(import_module(module), function))
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"`{name}` needs the package {error.name}, which is not installed: "
                "run `pip install 'neuralchat_lite[bench]'`"
            ) from error
        return command(
            context.args, prog_name=f"python -m benchmarks {name}", standalone_mode=False
        )


for name, (where, help) in LATER.items():
    add_later(name, where, help)


def require_engine(name: str) -> None:
    if name not in ENGINES:
        raise ConfigError(f"there is no engine {name!r}: choose one of {', '.join(ENGINES)}")


def installed_variants(asked: list[str] | None, profile: Profile) -> list[Variant]:
    """What was asked for, or of the profile's variants those whose engines are installed."""
    from benchmarks.engines.environments import environment_of, is_ready

    if asked:
        found = chosen_variants(asked)
        for name in {variant.engine for variant in found}:
            environment = environment_of(name)
            if environment is not None:
                environment.require_ready()
        return found
    found = chosen_variants(profile.variants)
    ready = {name: is_ready(name) for name in {variant.engine for variant in found}}
    for name in sorted(name for name, there in ready.items() if not there):
        warn(f"{name} is not installed and left out: `python -m benchmarks setup {name}`")
    return [variant for variant in found if ready[variant.engine]]


def chosen_cases(
    profile: Profile,
    contexts: str | None,
    batches: str | None,
    rounds: int | None,
    new_tokens: int | None,
) -> list[Case]:
    """The profile's cases, with what was asked for instead."""
    from dataclasses import replace

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
    import time

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
    from benchmarks.models.kept import cache_root
    from benchmarks.models.model import Model
    from benchmarks.models.random_checkpoint import random_model
    from benchmarks.models.shapes import shape_name
    from neuralchat_lite.checkpoints.hub import resolve

    if (shape is None) == (model is None):
        raise ConfigError("--shape makes random weights and --model takes real ones: give one")
    root = cache_root()
    if model is not None:
        found = resolve(model, None, None)
        name = model if found.hub else found.folder.resolve().name
        return Model.at(name, found.folder, root)
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


def main() -> None:
    """Run a command and exit: 0 done, 2 bad input (one line on stderr), 130 interrupted."""
    try:
        code = app(prog_name="python -m benchmarks", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except NeuralchatError as error:
        warn("benchmarks: " + " ".join(str(error).split()))
        code = INPUT_ERROR
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's own, about arguments
            raise
        warn(f"benchmarks: {error.format_message()} (see `python -m benchmarks --help`)")
        code = INPUT_ERROR
    sys.exit(code)
