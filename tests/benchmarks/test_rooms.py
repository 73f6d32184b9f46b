"""The rooms of the benchmarks: imports point down, and each opens with its idea."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAME = "benchmarks"
PACKAGE = ROOT / NAME

# From top to bottom. A module may import from rows below its own and from its own room.
ROOMS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("report",),
    ("accuracy", "latency", "server"),
    ("engines",),
    ("models",),
    ("rows",),
)
LEVEL = {name: level for level, row in enumerate(ROOMS) for name in row}
# A script that finds the rooms beside itself: see its import of `models.shapes`.
SCRIPTS = {"decode"}


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path.stem not in SCRIPTS]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str | None:
    """`benchmarks.rows.kinds` -> "rows"; the package itself -> None."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def imports(source: str) -> Iterator[str]:
    """Every module of the benchmarks that a source imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == NAME)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that the arrow can be read"
            if node.module == NAME:
                yield from (f"{NAME}.{alias.name}" for alias in node.names)
            elif node.module and node.module.split(".")[0] == NAME:
                yield node.module


def violations(module: str, source: str) -> list[str]:
    own = room_of(module)
    wrong = []
    for target in imports(source):
        other = room_of(target)
        if own is None or other is None or own == other:
            continue
        if LEVEL[other] <= LEVEL[own]:
            wrong.append(f"{module} imports {target}")
    return wrong


def test_every_module_has_a_room() -> None:
    assert {room_of(module_name(path)) for path in modules()} - {None} == set(LEVEL)


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_imports_point_down(path: Path) -> None:
    assert violations(module_name(path), path.read_text(encoding="utf-8")) == []


def test_an_import_that_points_up_or_sideways_is_seen_wherever_it_stands() -> None:
    inside = "def f():\n    from benchmarks.report.page import build"
    assert violations("benchmarks.latency.check", inside)
    assert violations("benchmarks.accuracy.run", "import benchmarks.latency.machine")
    assert violations("benchmarks.models.model", "from benchmarks import engines")
    assert not violations("benchmarks.report.page", "from benchmarks.latency import machine")


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_a_module_opens_with_its_idea(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
