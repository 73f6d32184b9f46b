"""`neuralchat-lite cache`: list, verify and remove the quantized models on the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from neuralchat_lite.cli.progress import QuantizingProgress
from neuralchat_lite.cli.terminal import say, size_text, warn
from neuralchat_lite.errors import CacheError, ConfigError

if TYPE_CHECKING:
    from neuralchat_lite.packed.cache import Entry

app = typer.Typer(
    help="Look after the cache of quantized models.", no_args_is_help=True, rich_markup_mode="rich"
)

EntryNames = Annotated[list[str] | None, typer.Argument(help="Names as in `cache list`.")]
RemoveAll = Annotated[bool, typer.Option("--all", help="Remove everything.")]


@app.command("list")
def cache_list() -> None:
    """Show what is in the cache."""
    from neuralchat_lite.packed.cache import cache_root, disk_bytes, entries, leftovers

    found = entries()
    for entry in found:
        say(f"{entry.name}\t{size_text(entry.disk_bytes)}\t{entry.problem or 'whole'}")
    total = size_text(sum(entry.disk_bytes for entry in found))
    warn(f"{len(found)} model{'s' * (len(found) != 1)}, {total}, in {cache_root()}")
    if unfinished := leftovers():
        total = size_text(sum(map(disk_bytes, unfinished)))
        warn(f"{total} of interrupted runs: `neuralchat-lite cache remove --all` frees it too")


@app.command("verify")
def cache_verify(names: EntryNames = None) -> None:
    """Compare the files of entries with their digests; without names, of all."""
    from neuralchat_lite.packed.cache import verify

    damaged = []
    for entry in chosen_entries(names):
        try:
            with QuantizingProgress() as progress:
                verify(entry, progress.update)
            say(f"{entry.name}\twhole")
        except CacheError as error:
            damaged.append(entry.name)
            say(f"{entry.name}\tdamaged: {error}")
    if damaged:
        raise CacheError(
            f"{len(damaged)} damaged: remove with `neuralchat-lite cache remove "
            f"{' '.join(damaged)}`; the next load quantizes again"
        )


@app.command("remove")
def cache_remove(names: EntryNames = None, all: RemoveAll = False) -> None:
    """Remove entries by name, or --all of them."""
    from neuralchat_lite.packed.cache import leftovers, remove

    if bool(names) == all:
        raise ConfigError("give the names of entries (see `neuralchat-lite cache list`), or --all")
    folders = [entry.path for entry in chosen_entries(names)]
    for folder in [*folders, *(leftovers() if all else ())]:
        remove(folder)
        say(f"{folder.name}\tremoved")


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
