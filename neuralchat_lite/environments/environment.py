"""Python environments for packages that need another torch, made from pinned requirement files.

A stamp in the folder of an environment tells its state. An installation writes the digest of the
requirement files there last. So an environment without a digest is unfinished, and one with another
digest is outdated; both are installed again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from neuralchat_lite.environments.description import (
    ANY_PYTHON,
    digest_of,
    python_range,
    read_facts,
    requirement_files,
)
from neuralchat_lite.environments.host import interpreters, this_cpu
from neuralchat_lite.errors import ConfigError, EngineError
from neuralchat_lite.files.json_file import JSON_LIMIT, parse_json
from neuralchat_lite.files.regular import read_regular

ROOT_VARIABLE = "NEURALCHAT_LITE_ENVIRONMENTS"
STAMP = "neuralchat-lite.json"

# Engines that need an environment; requirements/ describes them.
ENVIRONMENTS = ("ipex", "itrex")

State = Literal["ready", "absent", "unfinished", "outdated"]
STATES: dict[State, str] = {
    "ready": "installed",
    "absent": "not installed",
    "unfinished": "unfinished: its setup was interrupted",
    "outdated": "outdated: its requirements have changed since its setup",
}


@dataclass(frozen=True)
class Environment:
    """One environment, installed or not.

    name: its name in messages
    folder: where it is installed, or would be
    requirements: its requirement files, in the order of installation
    setup_command: the command that makes it, for messages
    """

    name: str
    folder: Path
    requirements: tuple[Path, ...]
    setup_command: str

    @classmethod
    def described(
        cls, name: str, descriptions: Path, root: Path, setup_command: str
    ) -> Environment:
        """The environment in root/name, described by the files of that name in a folder."""
        return cls(name, root / name, requirement_files(name, descriptions), setup_command)

    @property
    def python(self) -> Path:
        return self.folder / "bin/python"

    def facts(self) -> dict[str, str]:
        """The facts in the comments of the requirement files."""
        return read_facts(self.requirements)

    def digest(self) -> str:
        return digest_of(self.requirements)

    def state(self) -> State:
        if not self.folder.exists():
            return "absent"
        done = self.stamp().get("requirements")
        # The interpreter that made it may have been removed.
        if done is None or not self.python.exists():
            return "unfinished"
        return "ready" if done == self.digest() else "outdated"

    def stamp(self) -> dict[str, Any]:
        """What the setup wrote: when complete, the digest, Python, and where torch came from."""
        try:
            return parse_json(read_regular(self.folder / STAMP, JSON_LIMIT))
        except (OSError, ValueError):
            return {}

    def write_stamp(self, **facts: str | None) -> None:
        temporary = self.folder / f"{STAMP}.tmp"
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.folder / STAMP)

    def require_ready(self) -> None:
        """Raises EngineError with the remedy if it is not ready."""
        state = self.state()
        if state != "ready":
            raise EngineError(
                f"the environment of {self.name} in {self.folder} is {STATES[state]}: "
                f"run `{self.setup_command}` ({self.size_text(with_cuda=True)}; without CUDA's "
                f"libraries, see its --help, {self.size_text()})"
            )

    def sizes(self, with_cuda: bool) -> tuple[str | None, str | None]:
        """(size of the download, size on disk) as texts, None if unknown."""
        facts, suffix = self.facts(), " with CUDA" * with_cuda
        download, disk = (
            facts.get(name + suffix, facts.get(name)) for name in ("download", "disk")
        )
        return download, disk

    def size_text(self, with_cuda: bool = False) -> str:
        download, disk = self.sizes(with_cuda)
        return f"{download or 'an unknown size'} to download, {disk or 'an unknown size'} on disk"

    def summary(self) -> tuple[str, str]:
        """(state, detail) for a list. The detail says where it is, why it cannot run, or how to
        install it."""
        state = self.state()
        if obstacles := self.obstacles():
            return "cannot run", "; ".join(obstacles)
        if state == "ready":
            made = self.stamp()
            return state, f"in {self.folder} (Python {made['python']}, torch from {made['torch']})"
        about, whole = self.facts().get("about", self.name), self.size_text(with_cuda=True)
        return STATES[state], (
            f"{about}: {self.size_text()}; with CUDA's libraries {whole}: `{self.setup_command}`"
        )

    def obstacles(self, cpu_flags: frozenset[str] | None = None) -> list[str]:
        """The reasons why it cannot run on this machine, each with its rule.

        cpu_flags: the flags of the CPU; those of this one if None
        """
        wanted = self.facts().get("cpu", "").split()
        flags = this_cpu() if cpu_flags is None else cpu_flags
        missing = [flag for flag in wanted if flag not in flags]
        found = []
        if missing:
            found.append(f"needs a CPU with {', '.join(wanted)}; this one lacks {missing[0]}")
        if next(self.interpreters(), None) is None:
            found.append(f"{self.python_rule()}, and none is on the PATH")
        return found

    def interpreters(self) -> Iterator[Path]:
        """Pythons of this machine that can make it, the best choice first."""
        return interpreters(*python_range(self.facts()))

    def python_rule(self) -> str:
        return f"needs Python {self.facts().get('python', ANY_PYTHON)}"

    def variables(self) -> dict[str, str | None]:
        """Environment variables for a process in it, as its `activate` script sets them."""
        path = os.environ.get("PATH", os.defpath)
        return {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{path}",
            "VIRTUAL_ENV": str(self.folder),
            "PYTHONPATH": None,
            "PYTHONHOME": None,
        }


def environments_root(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of all environments: NEURALCHAT_LITE_ENVIRONMENTS, else
    $XDG_DATA_HOME/neuralchat_lite/environments, else ~/.local/share/neuralchat_lite/environments.
    """
    own = environ.get(ROOT_VARIABLE)
    if own:
        return Path(own).expanduser().absolute()
    shared = environ.get("XDG_DATA_HOME")
    data = Path(shared) if shared else Path.home() / ".local/share"
    return data / "neuralchat_lite/environments"


def engine_environment(name: str) -> Environment:
    """The environment of an engine. Raises ConfigError if the engine has none."""
    if name not in ENVIRONMENTS:
        raise ConfigError(
            f"engine {name!r} has no environment of its own, expected {' or '.join(ENVIRONMENTS)}"
        )
    descriptions = Path(__file__).parent / "requirements"
    command = f"neuralchat-lite engines setup {name}"
    return Environment.described(name, descriptions, environments_root(), command)
