"""The command line's groups that look after what lies on the disk: `cache` and `engines`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from neuralchat_lite.cli.terminal import QuantizingProgress, size_text, warn
from neuralchat_lite.errors import CacheError, ConfigError

if TYPE_CHECKING:
    from neuralchat_lite.packed.cache import Entry

cache_app = typer.Typer(
    help="Look after the cache of quantized models.", no_args_is_help=True, rich_markup_mode="rich"
)
engines_app = typer.Typer(
    help="Look after the engines that need an environment of their own.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

EntryNames = Annotated[list[str] | None, typer.Argument(help="Names as in `cache list`.")]
RemoveAll = Annotated[bool, typer.Option("--all", help="Remove everything.")]
SetupName = Annotated[str, typer.Argument(metavar="NAME", help="ipex or itrex.")]


@cache_app.command("list")
def cache_list() -> None:
    """Show what is in the cache."""
    from neuralchat_lite.packed.cache import cache_root, disk_bytes, entries, leftovers

    found = entries()
    for entry in found:
        print(f"{entry.name}\t{size_text(entry.disk_bytes)}\t{entry.problem or 'whole'}")
    total = size_text(sum(entry.disk_bytes for entry in found))
    warn(f"{len(found)} model{'s' * (len(found) != 1)}, {total}, in {cache_root()}")
    if unfinished := leftovers():
        total = size_text(sum(map(disk_bytes, unfinished)))
        warn(f"{total} of interrupted runs: `neuralchat-lite cache remove --all` frees it too")


@cache_app.command("verify")
def cache_verify(names: EntryNames = None) -> None:
    """Compare the files of entries with their digests; without names, of all."""
    from neuralchat_lite.packed.cache import verify

    damaged = []
    for entry in chosen_entries(names):
        try:
            with QuantizingProgress() as progress:
                verify(entry, progress.update)
            print(f"{entry.name}\twhole")
        except CacheError as error:
            damaged.append(entry.name)
            print(f"{entry.name}\tdamaged: {error}")
    if damaged:
        raise CacheError(
            f"{len(damaged)} damaged: remove with `neuralchat-lite cache remove "
            f"{' '.join(damaged)}`; the next load quantizes again"
        )


@cache_app.command("remove")
def cache_remove(names: EntryNames = None, all: RemoveAll = False) -> None:
    """Remove entries by name, or --all of them."""
    from neuralchat_lite.packed.cache import leftovers, remove

    if bool(names) == all:
        raise ConfigError("give the names of entries (see `neuralchat-lite cache list`), or --all")
    folders = [entry.path for entry in chosen_entries(names)]
    for folder in [*folders, *(leftovers() if all else ())]:
        remove(folder)
        print(f"{folder.name}\tremoved")


@engines_app.command("list")
def engines_list() -> None:
    """Show which engines can run, and what the others need."""
    from neuralchat_lite.environments.environment import ENVIRONMENTS, engine_environment

    print("native\tready\tin this process: int4 and int8 kernels of this library")
    print("torch\tready\tin this process: transformers in bf16 or fp32, the reference")
    for name in ENVIRONMENTS:
        print("\t".join((name, *engine_environment(name).summary())))


@engines_app.command("setup")
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

    engine_environment(name).setup(
        python=python, torch_index=torch_index, stub_cuda=stub_cuda, say=warn
    )


@engines_app.command("remove")
def engines_remove(name: SetupName) -> None:
    """Delete the environment of an engine."""
    from neuralchat_lite.environments.environment import engine_environment

    there = engine_environment(name).remove()
    print(f"{name}\t{'removed' if there else 'was not there'}")


def chosen_entries(names: list[str] | None) -> list[Entry]:
    from neuralchat_lite.packed.cache import cache_root, entries

    found = {entry.name: entry for entry in entries()}
    for name in names or ():
        if name not in found:
            raise CacheError(
                f"there is no entry {name!r} in {cache_root()}: "
                "see `neuralchat-lite cache list` for the names"
            )
    return [found[name] for name in names] if names else list(found.values())
