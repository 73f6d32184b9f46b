"""`python -m benchmarks`: a table of commands, each imported when it is called."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import typer

from neuralchat_lite.cli.terminal import warn
from neuralchat_lite.errors import ConfigError, NeuralchatError

INPUT_ERROR, INTERRUPTED = 2, 130

app = typer.Typer(
    name="benchmarks",
    help="Engines side by side on this machine: latency, memory and accuracy.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

# name -> (function, help)
COMMANDS = {
    "list": (
        "benchmarks.cli.housekeeping:list_engines",
        "Show engines, their variants, and which are installed.",
    ),
    "setup": (
        "benchmarks.cli.housekeeping:setup",
        "Make the environments of engines; the sizes are said first.",
    ),
    "latency": (
        "benchmarks.cli.latency:latency",
        "Measure load, first token, time per token and memory, engines taking turns.",
    ),
    "profile": (
        "benchmarks.cli.profile:profile",
        "Show where the time of a token goes, operation by operation.",
    ),
    "kernels": (
        "benchmarks.cli.kernels:kernels",
        "Measure products alone, beside the peak of their instruction.",
    ),
    "requests": (
        "benchmarks.cli.requests:requests_command",
        "Measure many requests, some at a time, engines taking turns.",
    ),
    "server": (
        "benchmarks.cli.server:server",
        "Measure the server under the load of many clients, beside threads in Python.",
    ),
    "calibration": (
        "benchmarks.cli.calibration:calibration",
        "Measure calibrated quantizing, kill it at random and compare the bytes.",
    ),
    "check": (
        "benchmarks.cli.check:check",
        "Compare our figures of an engine with those of its own clock.",
    ),
    "clean": (
        "benchmarks.cli.housekeeping:clean",
        "Delete the random models and converted files of benchmarks.",
    ),
    "accuracy": (
        "benchmarks.cli.accuracy:accuracy_command",
        "Score variants on the same items.",
    ),
    "compare": (
        "benchmarks.cli.results:compare_command",
        "Compare variants with a baseline.",
    ),
    "agreement": (
        "benchmarks.cli.agreement:agreement_command",
        "Compare our log-likelihoods with lm_eval's own backend.",
    ),
    "file": (
        "benchmarks.cli.one_file:file_command",
        "Compare our distributions with llama.cpp's on one GGUF file.",
    ),
    "report": (
        "benchmarks.cli.results:report_command",
        "Write results as one file, table and page.",
    ),
}


def add(name: str, where: str, help: str) -> None:
    """Add a command whose module is imported when it is called, also for its own --help."""
    settings = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

    @app.command(name, help=help, context_settings=settings)
    def call(context: typer.Context) -> Any:
        module, _, function = where.partition(":")
        command = typer.Typer(
            add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False
        )
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


for name, (where, help) in COMMANDS.items():
    add(name, where, help)


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
