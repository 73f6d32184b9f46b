"""Around the measurements: list engines, set up their environments, delete kept models."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from benchmarks.engines.environments import environment_of
from benchmarks.engines.table import ENGINES
from benchmarks.models.kept import cache_root, remove_models
from benchmarks.report.terminal import console
from neuralchat_lite.cli.terminal import warn
from neuralchat_lite.environments.environment import STATES
from neuralchat_lite.environments.installation import install
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.files.progress import size_text

EngineNames = Annotated[list[str], typer.Argument(metavar="ENGINE…", help="Names as in `list`.")]


def list_engines() -> None:
    """Show engines, their variants, and which are installed."""
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
    for name in engines:
        require_engine(name)
        environment = environment_of(name)
        if environment is None:
            warn(f"{name} runs in this environment: nothing to do")
        else:
            install(
                environment, python=python, torch_index=torch_index, stub_cuda=stub_cuda, say=warn
            )


def clean() -> None:
    """Delete the random models and converted files of benchmarks."""
    freed = remove_models(cache_root())
    print(f"{size_text(freed)} freed in {cache_root()}")


def require_engine(name: str) -> None:
    if name not in ENGINES:
        raise ConfigError(f"there is no engine {name!r}: choose one of {', '.join(ENGINES)}")
