"""Every code block of the documentation runs, against the little model under the 7B's name.

Python blocks of a page run in order, in one process. Lines of ```bash blocks run one by one;
```console shows what changes the machine (installing), and ```text what is not ours to run.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from .patience import patience

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / "examples").glob("*.md"),
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
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


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "-d",
        tmp_path / "site",
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=patience(120))
    assert run.returncode == 0, run.stdout + run.stderr
    assert "context_length" in (tmp_path / "site/api/index.html").read_text(encoding="utf-8")
