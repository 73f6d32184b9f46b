"""`neuralchat-lite cache`: list, verify and remove the quantized models on the disk."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from neuralchat_lite.cli.terminal import say, warn
from neuralchat_lite.errors import CacheError, ConfigError, visible
from neuralchat_lite.files.progress import size_text
from neuralchat_lite.files.progress_bar import ProgressBar

if TYPE_CHECKING:
    from neuralchat_lite.packed.cache import Entry

app = typer.Typer(
    help="Look after the cache of quantized models.", no_args_is_help=True, rich_markup_mode="rich"
)

DATE = "%Y-%m-%d %H:%M"
EntryNames = Annotated[
    list[str] | None, typer.Argument(help="Names as in `cache list`; a beginning will do.")
]
RemoveAll = Annotated[bool, typer.Option("--all", help="Remove everything.")]


@app.command("list")
def cache_list() -> None:
    """Show what is in the cache: name, size, date, source, settings and state of each model."""
    from neuralchat_lite.packed.cache import cache_root, disk_bytes, entries, leftovers

    found = entries()
    for entry in found:
        date = "-" if entry.written is None else f"{datetime.fromtimestamp(entry.written):{DATE}}"
        columns = (
            entry.name,
            size_text(entry.disk_bytes),
            date,
            entry.source or "-",
            entry.settings or "-",
            state_of(entry),
        )
        say("\t".join(" ".join(visible(text).split()) for text in columns))
    total = size_text(sum(entry.disk_bytes for entry in found))
    warn(f"{len(found)} model{'s' * (len(found) != 1)}, {total}, in {cache_root()}")
    if unfinished := leftovers():
        total = size_text(sum(map(disk_bytes, unfinished)))
        warn(f"{total} of interrupted runs: `neuralchat-lite cache remove --all` frees it too")


def state_of(entry: Entry) -> str:
    return entry.problem or "whole"


@app.command("verify")
def cache_verify(names: EntryNames = None) -> None:
    """Compare the files of entries with their digests; without names, of all."""
    from neuralchat_lite.packed.cache import verify

    damaged = []
    for entry in chosen_entries(names):
        try:
            with ProgressBar(warn) as progress:
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
    """The entries that names mean, each once; all of them without names."""
    from neuralchat_lite.packed.cache import entries

    found = {entry.name: entry for entry in entries()}
    if not names:
        return list(found.values())
    return [found[name] for name in dict.fromkeys(whole_name(name, found) for name in names)]


def whole_name(beginning: str, names: Iterable[str]) -> str:
    """The name of an entry from enough of its beginning."""
    from neuralchat_lite.packed.cache import cache_root

    if beginning in names:
        return beginning
    meant = [name for name in names if beginning and name.startswith(beginning)]
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise CacheError(
            f"{beginning!r} begins the names of {len(meant)} entries, {', '.join(meant)}: "
            "give more of the name"
        )
    raise CacheError(
        f"there is no entry {beginning!r} in {cache_root()}: "
        "see `neuralchat-lite cache list` for the names"
    )
