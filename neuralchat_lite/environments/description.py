"""What the requirement files of an environment say: packages, their order, sizes and rules.

Opening comments give the facts that a person wants to know before a download:

    # download: 0.94 GB
    # disk: 2.3 GB
    # python: 3.10 to 3.12
    # cpu: avx2 fma
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

SUFFIX = ".txt"
# pip's options for a file, by its second ending, in the order of installation. torch comes first,
# so that no other package installs a different one.
STEPS = {".torch": None, ".no-deps": ["--no-deps"], "": []}
# Where torch comes from -> whether all of CUDA comes with it.
TORCH_SOURCES = {"index": False, "stubs": False, "registry": True}
ANY_PYTHON = "3.10 to 3.14"  # if the files do not say
FACT = re.compile(r"#\s*([\w ]+?)\s*:\s*(.+)")
SIZE = re.compile(r"([\d.]+) (MB|GB)")
UNITS = {"MB": 10**6, "GB": 10**9}


def requirement_files(name: str, folder: Path) -> tuple[Path, ...]:
    """The files NAME.torch.txt, NAME.no-deps.txt and NAME.txt that exist, in this order."""
    files = (folder / f"{name}{ending}{SUFFIX}" for ending in STEPS)
    found = tuple(file for file in files if file.is_file())
    assert found, f"{folder} has no requirement files of {name}"
    return found


def read_facts(files: Sequence[Path]) -> dict[str, str]:
    """The facts in the comments of the files."""
    lines = (line for file in files for line in read(file).splitlines())
    return {match[1]: match[2] for line in lines if (match := FACT.fullmatch(line))}


def digest_of(files: Sequence[Path]) -> str:
    """The SHA-256 of the names and contents of the files, in hexadecimal digits."""
    together = hashlib.sha256()
    for file in files:
        together.update(f"{file.name}\0{read(file)}\0".encode())
    return together.hexdigest()


def python_range(facts: Mapping[str, str]) -> tuple[int, int]:
    """The first and the last minor version of Python 3 that the packages support."""
    minors = [int(minor) for minor in re.findall(r"3\.(\d+)", facts.get("python", ANY_PYTHON))]
    return minors[0], minors[-1]


def size_in_bytes(text: str) -> float | None:
    """ "2.3 GB" -> 2.3e9, and None for a text that is not a size."""
    size = SIZE.fullmatch(text)
    return float(size[1]) * UNITS[size[2]] if size else None


def packages(file: Path) -> list[str]:
    """The lines of a requirement file, without comments."""
    lines = (line.split("#")[0].strip() for line in read(file).splitlines())
    return [line for line in lines if line]


def step_options(file: Path, torch_index: str | None, source: str) -> list[str]:
    """pip's options for a requirement file. `source` is a key of TORCH_SOURCES."""
    options = STEPS[Path(file.stem).suffix]
    if options is not None:
        return options
    if torch_index:
        return ["--no-deps", "--index-url", torch_index]
    return [] if TORCH_SOURCES[source] else ["--no-deps"]


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8")
