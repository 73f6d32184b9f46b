"""Every code block of the documentation runs, against the little model under the 7B's name.

Python blocks of a page run in order, in one process. Lines of ```bash blocks run one by one;
```console shows what changes the machine (installing), and ```text what is not ours to run.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from markdown_it import MarkdownIt

import neuralchat_lite as ncl
from neuralchat_lite.cli.app import app

from .patience import patience

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs/reference"
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*.md")),
    ROOT / "examples/nano/README.md",
]
KNOWN = {
    "python",
    "bash",
    "console",
    "text",
    "hexdump",
}  # hexdump: packed/test_golden_bytes.py


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(language, code) of every fenced block."""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "fence":
            yield token.info.strip(), token.content


@pytest.fixture(scope="module")
def environment(stand_in: Callable[[Path], dict[str, str]]) -> dict[str, str]:
    return stand_in(ROOT / "examples/nano/model")


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(blocks(page))], ids=lambda p: str(p.relative_to(ROOT))
)
def test_every_code_block_runs(page: Path, environment: dict[str, str], tmp_path: Path) -> None:
    for name in ("examples", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    found = list(blocks(page))
    assert {language for language, _ in found} <= KNOWN
    python = "\n".join(code for language, code in found if language == "python")
    lines = [
        line
        for language, code in found
        if language == "bash"
        for line in code.replace("\\\n", " ").splitlines()
        if line.strip() and not line.startswith("#")
    ]
    commands = [*([[sys.executable, "-c", python]] if python else []), *lines]
    for command in commands:
        run = subprocess.run(
            command,
            shell=isinstance(command, str),
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=patience(300),
        )
        assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
            for child in token.children or ():
                target = str(child.attrs.get("href") or child.attrs.get("src") or "")
                if target and "://" not in target and not target.startswith("#"):
                    assert (page.parent / target.partition("#")[0]).exists(), f"{page}: {target}"


def test_every_environment_variable_is_on_its_page() -> None:
    used = set(re.findall(r"^([A-Z_]+) \?=", (ROOT / "Makefile").read_text(), re.MULTILINE))
    read = re.compile(r'(NEURALCHAT_LITE_[A-Z_]+)|(?:environ(?:\.get\(|\[)|getenv\()"([A-Z_]+)"')
    for folder in ("neuralchat_lite", "benchmarks"):
        for file in (ROOT / folder).rglob("*.*"):
            if file.suffix in (".py", ".cpp", ".h"):
                for own, other in read.findall(file.read_text(encoding="utf-8")):
                    used.add(own or other)
    text = (REFERENCE / "environment.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`([A-Z][A-Z_]+)`", text))
    assert {"NEURALCHAT_LITE_CACHE", "XDG_CACHE_HOME", "TORCH"} <= used
    assert used <= listed
    assert {name for name in listed if name.startswith("NEURALCHAT_LITE_")} <= used


def commands(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """("cache list", its command) of every command that does something."""
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, f"{path} {name}".strip())
    if not hasattr(command, "commands"):
        yield path, command


def test_every_command_and_option_is_on_its_page() -> None:
    text = (REFERENCE / "command-line.md").read_text(encoding="utf-8")
    found = dict(commands(typer.main.get_command(app)))
    assert {"generate", "cache verify", "engines setup"} <= set(found)
    for path, command in found.items():
        assert re.search(rf"`(neuralchat-lite )?{path}\b", text), path
        for parameter in command.params:
            for option in (*parameter.opts, *parameter.secondary_opts):
                # Of `cache remove --all` the row names the command too.
                known = f"`{option}`" in text or f"{path} {option}`" in text
                assert known or not option.startswith("-"), f"{path} {option}"


@pytest.mark.parametrize(
    ("page", "described"),
    [
        ("quantization-config.md", ncl.WeightOnlyQuantConfig),
        ("generation.md", ncl.GenerationOptions),
        ("generation.md", ncl.Reply),
        ("generation.md", ncl.Piece),
        ("generation.md", ncl.Score),
        ("generation.md", ncl.Timings),
    ],
)
def test_every_field_is_in_a_table_of_the_reference(page: str, described: Any) -> None:
    rows = [line for line in (REFERENCE / page).read_text().splitlines() if line.startswith("|")]
    first_cells = " ".join(row.split("|")[1] for row in rows)
    for field in dataclasses.fields(described):
        assert f"`{field.name}`" in first_cells, field.name


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation, built; a broken link or anchor stops the build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", folder]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=patience(300))
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def test_the_site_builds_without_a_warning(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix("")
        folder = site / name.parent / ("" if name.name == "index" else name.name)
        assert (folder / "index.html").exists(), page


def test_the_api_page_shows_arguments_in_tables_and_no_internals(site: Path) -> None:
    html = (site / "reference/api/index.html").read_text(encoding="utf-8")
    shown = set(re.findall(r'id="(neuralchat_lite[\w.]*)"', html))
    assert {"neuralchat_lite.load", "neuralchat_lite.Model.stream"} <= shown
    assert not [name for name in shown if "._" in name]
    assert "neuralchat_lite.Model.with_load_time" not in shown
    cells = re.findall(r"<td[^>]*>(.*?)</td>", html, re.DOTALL)
    first = {re.sub(r"<[^>]+>|\s", "", cell) for cell in cells}
    assert {"context_length", "adapters", "group_size", "cache_dir"} <= first
