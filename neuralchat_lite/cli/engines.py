"""`neuralchat-lite engines`: list the engines, and set up or remove their environments."""

from __future__ import annotations

from typing import Annotated

import typer

from neuralchat_lite.cli.terminal import say, warn

app = typer.Typer(
    help="Look after the engines that need an environment of their own.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

SetupName = Annotated[str, typer.Argument(metavar="NAME", help="ipex or itrex.")]


@app.command("list")
def engines_list() -> None:
    """Show which engines can run, and what the others need."""
    from neuralchat_lite.environments.environment import ENVIRONMENTS, engine_environment

    say("native\tready\tin this process: int4 and int8 kernels of this library")
    say("torch\tready\tin this process: transformers in bf16 or fp32, the reference")
    for name in ENVIRONMENTS:
        say("\t".join((name, *engine_environment(name).summary())))


@app.command("setup")
def engines_setup(
    name: SetupName,
    python: Annotated[str | None, typer.Option(help="The interpreter to make it of.")] = None,
    torch_index: Annotated[
        str | None,
        typer.Option(
            envvar="NEURALCHAT_LITE_TORCH_INDEX",
            help="A package index of CPU builds of torch. Without one, torch comes from pip's own, "
            "as a rule with gigabytes of CUDA.",
        ),
    ] = None,
    stub_cuda: Annotated[
        bool,
        typer.Option(
            "--stub-cuda",
            help="Install a CUDA build of torch without CUDA, with stand-ins for its libraries "
            "that say there is no device. Needs gcc.",
        ),
    ] = False,
) -> None:
    """Make the environment of an engine; says first how much it downloads."""
    from neuralchat_lite.environments.environment import engine_environment
    from neuralchat_lite.environments.installation import install

    environment = engine_environment(name)
    install(environment, python=python, torch_index=torch_index, stub_cuda=stub_cuda, say=warn)


@app.command("remove")
def engines_remove(name: SetupName) -> None:
    """Delete the environment of an engine."""
    from neuralchat_lite.environments.environment import engine_environment
    from neuralchat_lite.environments.installation import remove

    there = remove(engine_environment(name))
    say(f"{name}\t{'removed' if there else 'was not there'}")
