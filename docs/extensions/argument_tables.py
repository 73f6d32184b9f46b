"""Argument tables of the API reference, from our docstrings, which give each argument a line.

A line "name: what it means" of a docstring, with the lines indented under it, becomes an entry of
an `Args:` section, or of `Attributes:` when the name is a field of the class. mkdocstrings shows
those sections as tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import griffe

ENTRY = re.compile(r"(\w+(?:, \w+)*)(?: \.\.\.)?: (.+)")


class ArgumentTables(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        for thing in everything(pkg):
            if thing.docstring is not None:
                names = named_in(thing)
                thing.docstring.value = with_sections(thing.docstring.value, *names)


def everything(thing: griffe.Object) -> Iterator[griffe.Object]:
    """An object and what is defined inside it; what is only imported there is left out."""
    yield thing
    for member in thing.members.values():
        if isinstance(member, griffe.Object):
            yield from everything(member)


def named_in(thing: griffe.Object) -> tuple[set[str], set[str]]:
    """The parameters and the fields of a function or a class."""
    parameters: set[str] = set()
    if isinstance(thing, griffe.Class | griffe.Function):
        parameters = {parameter.name.lstrip("*") for parameter in thing.parameters}
    fields = {
        name for name, member in thing.members.items() if isinstance(member, griffe.Attribute)
    }
    return parameters, fields


def with_sections(text: str, parameters: set[str], fields: set[str]) -> str:
    """The docstring with an `Args:` or `Attributes:` section for each run of entries."""
    lines: list[str] = []
    section = ""
    for line in text.splitlines():
        entry = ENTRY.fullmatch(line)
        names = entry[1].split(", ") if entry else []
        title = ""
        if names and set(names) <= fields:
            title = "Attributes:"
        elif names and set(names) <= parameters:
            title = "Args:"
        elif section and line.startswith(" "):
            title = section  # the entry goes on
        if title != section:
            lines += ["", title] if title else [""]
        section = title
        if entry and title:
            lines += [f"    {name}: {entry[2]}" for name in names[:-1]]
            lines.append(f"    {names[-1]}: {entry[2]}")
        else:
            lines.append(f"    {line}" if title else line)
    return "\n".join(lines)
