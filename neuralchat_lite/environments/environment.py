"""Python environments for packages that need another torch: made from pinned files, whole or not
at all.

An environment is described by requirement files, whose opening comments carry the facts that a
person wants before anything is downloaded:

    # download: 0.94 GB
    # disk: 2.3 GB
    # python: 3.10 to 3.12
    # cpu: avx2 fma

Its stamp gets the digest of these files last. So an environment without a digest is unfinished,
and one with another digest is outdated; both are made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from neuralchat_lite.environments.cuda_stubs import make_stubs
from neuralchat_lite.errors import ConfigError, EngineError

ROOT_VARIABLE = "NEURALCHAT_LITE_ENVIRONMENTS"
INDEX_VARIABLE = "NEURALCHAT_LITE_TORCH_INDEX"
STAMP = "neuralchat-lite.json"
SUFFIX = ".txt"
ANY_PYTHON = "3.10 to 3.14"  # where the files don't say
# How a file's packages are installed, by its second ending, in this order. torch comes first, so
# that nothing brings another one.
STEPS = {".torch": None, ".no-deps": ["--no-deps"], "": []}
# Where torch comes from -> whether all of CUDA comes with it.
TORCH_SOURCES = {"index": False, "stubs": False, "registry": True}
FACT = re.compile(r"#\s*([\w ]+?)\s*:\s*(.+)")
SIZE = re.compile(r"([\d.]+) (MB|GB)")
UNITS = {"MB": 10**6, "GB": 10**9}

# Engines of ours that need one; requirements/ describes them.
ENVIRONMENTS = ("ipex", "itrex")

State = Literal["ready", "absent", "unfinished", "outdated"]
STATES: dict[State, str] = {
    "ready": "installed",
    "absent": "not installed",
    "unfinished": "unfinished: its setup was interrupted",
    "outdated": "outdated: its requirements have changed since",
}


@dataclass(frozen=True)
class Environment:
    """One environment, there or not.

    name: what messages call it
    folder: where it is, or is to be
    requirements: NAME.torch.txt, NAME.no-deps.txt, NAME.txt, those that there are
    setup_command: what makes it, for messages
    """

    name: str
    folder: Path
    requirements: tuple[Path, ...]
    setup_command: str

    @classmethod
    def described(
        cls, name: str, descriptions: Path, root: Path, setup_command: str
    ) -> Environment:
        """The environment root/name, described by the files of that name in a folder."""
        files = tuple(descriptions / f"{name}{ending}{SUFFIX}" for ending in STEPS)
        found = tuple(file for file in files if file.is_file())
        assert found, f"{descriptions} has no requirement files of {name}"
        return cls(name, root / name, found, setup_command)

    @property
    def python(self) -> Path:
        return self.folder / "bin/python"

    def facts(self) -> dict[str, str]:
        """The facts in the comments of the files."""
        lines = (line for file in self.requirements for line in read(file).splitlines())
        return {match[1]: match[2] for line in lines if (match := FACT.fullmatch(line))}

    def digest(self) -> str:
        together = hashlib.sha256()
        for file in self.requirements:
            together.update(f"{file.name}\0{read(file)}\0".encode())
        return together.hexdigest()

    def state(self) -> State:
        if not self.folder.exists():
            return "absent"
        done = self.stamp().get("requirements")
        # The interpreter that it was made of may be gone.
        if done is None or not self.python.exists():
            return "unfinished"
        return "ready" if done == self.digest() else "outdated"

    def stamp(self) -> dict[str, Any]:
        """What the setup has written: at its end the digest, Python, and where torch came from."""
        try:
            return dict(json.loads(read(self.folder / STAMP)))
        except (OSError, ValueError):
            return {}

    def write_stamp(self, **facts: str | None) -> None:
        temporary = self.folder / f"{STAMP}.tmp"
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.folder / STAMP)

    def require_ready(self) -> None:
        """Raises EngineError with the remedy unless it is ready."""
        state = self.state()
        if state != "ready":
            raise EngineError(
                f"the environment of {self.name} in {self.folder} is {STATES[state]}: "
                f"run `{self.setup_command}` ({self.size_text(with_cuda=True)}; without CUDA's "
                f"libraries, see its --help, {self.size_text()})"
            )

    def sizes(self, with_cuda: bool) -> tuple[str | None, str | None]:
        """(to download, on disk) as texts."""
        facts, suffix = self.facts(), " with CUDA" * with_cuda
        download, disk = (
            facts.get(name + suffix, facts.get(name)) for name in ("download", "disk")
        )
        return download, disk

    def size_text(self, with_cuda: bool = False) -> str:
        download, disk = self.sizes(with_cuda)
        return f"{download or 'an unknown size'} to download, {disk or 'an unknown size'} on disk"

    def summary(self) -> tuple[str, str]:
        """For a list: the state, or "cannot run"; and where it is, why not, or how to get it."""
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
        """Why it cannot run here: each with the rule."""
        wanted = self.facts().get("cpu", "").split()
        flags = this_cpu() if cpu_flags is None else cpu_flags
        missing = [flag for flag in wanted if flag not in flags]
        found = []
        if missing:
            found.append(f"needs a CPU with {', '.join(wanted)}; this one lacks {missing[0]}")
        if next(self.interpreters(), None) is None:
            found.append(
                f"needs Python {self.facts().get('python', ANY_PYTHON)}, and none is on the PATH"
            )
        return found

    def interpreters(self) -> Iterator[Path]:
        """Pythons of this machine that it can be made of: our own first, then the newest."""
        low, high = self.python_range()
        newest_first = (f"python3.{minor}" for minor in range(high, low - 1, -1))
        names = (sys.executable, *newest_first, "python3")
        for name in names:
            path = shutil.which(name)
            if path is not None and self.accepts(python_version(Path(path))):
                yield Path(path)

    def python_rule(self) -> str:
        return f"needs Python {self.facts().get('python', ANY_PYTHON)}"

    def python_range(self) -> tuple[int, int]:
        """The minor versions of Python 3 that it can have, ends included."""
        text = self.facts().get("python", ANY_PYTHON)
        minors = [int(minor) for minor in re.findall(r"3\.(\d+)", text)]
        return minors[0], minors[-1]

    def accepts(self, version: str | None) -> bool:
        low, high = self.python_range()
        return version is not None and low <= int(version.split(".")[1]) <= high

    def choose_python(self, asked: str | None) -> Path:
        rule = self.python_rule()
        if asked is None:
            for found in self.interpreters():
                return found
            raise EngineError(
                f"the environment of {self.name} {rule}, and none is on the PATH: install one, "
                "or name it with --python"
            )
        path = shutil.which(asked)
        version = python_version(Path(path)) if path else None
        if not self.accepts(version):
            raise ConfigError(
                f"the environment of {self.name} {rule}, and {asked} is "
                f"{version or 'no Python 3 with venv and pip'}: name another"
            )
        assert path is not None
        return Path(path)

    def setup(
        self,
        *,
        python: str | None = None,
        torch_index: str | None = None,
        stub_cuda: bool = False,
        say: Callable[[str], None] = print,
    ) -> None:
        """Make the environment, unless it is ready.

        python: the interpreter to make it of; a suitable one of this machine when None
        torch_index: an index of CPU builds of torch (NEURALCHAT_LITE_TORCH_INDEX when None);
            without one, torch comes from pip's own
        stub_cuda: install torch without CUDA's libraries, and stand-ins for them
        say: called with a line for each step, the size first
        Raises ConfigError or EngineError; what has been installed by then is said to be
        unfinished.
        """
        torch_index = torch_index or os.environ.get(INDEX_VARIABLE) or None
        if torch_index and stub_cuda:
            raise ConfigError("an index of CPU builds needs no stubs of CUDA: give one of them")
        source = "index" if torch_index else "stubs" if stub_cuda else "registry"
        chosen = self.choose_python(python)
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(f"cannot make {self.folder}: {error.strerror}") from error
        with FileLock(self.folder.parent / f".{self.name}.lock"):
            if self.state() == "ready":
                say(f"{self.name} is installed already, in {self.folder}")
                return
            say(f"{self.name}: {self.size_text(TORCH_SOURCES[source])}, in {self.folder}")
            self.refuse_full_disk(TORCH_SOURCES[source])
            self.clear()
            self.folder.mkdir()
            self.write_stamp()
            run([str(chosen), "-m", "venv", str(self.folder)])
            for file in self.requirements:
                say(f"{self.name}: installing {', '.join(packages(file))}")
                run(self.pip(*step_options(file, torch_index, source), "-r", str(file)))
            if stub_cuda:
                say(f"{self.name}: stand-ins for CUDA's libraries, for computing on a CPU only")
                make_stubs(self.site_packages())
            self.write_stamp(
                requirements=self.digest(), python=python_version(self.python), torch=source
            )
            say(f"{self.name} is installed")

    def remove(self) -> bool:
        """Delete it, finished or not; whether there was something."""
        there = self.folder.exists()
        if there:
            with FileLock(self.folder.parent / f".{self.name}.lock"):
                self.clear()
        return there

    def clear(self) -> None:
        """Delete what is there. The stamp goes last, without its digest: what is left by an
        interruption is ours, and not taken for whole."""
        if not self.folder.exists():
            return
        children = {child.name: child for child in self.folder.iterdir()}
        stamp = children.pop(STAMP, None)
        if stamp is None and children:
            raise EngineError(
                f"{self.folder} is no environment of ours: move it away, or set {ROOT_VARIABLE} "
                "to another folder"
            )
        if stamp is not None:
            self.write_stamp()
        for child in children.values():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            else:
                child.unlink()
        (self.folder / STAMP).unlink(missing_ok=True)
        self.folder.rmdir()

    def refuse_full_disk(self, with_cuda: bool) -> None:
        disk = SIZE.fullmatch(self.sizes(with_cuda)[1] or "")
        if disk is None:
            return
        free = shutil.disk_usage(self.folder.parent).free
        if float(disk[1]) * UNITS[disk[2]] > free:
            raise EngineError(
                f"the environment of {self.name} takes {disk[0]}, and {self.folder.parent} has "
                f"{free / 1e9:.1f} GB left: make room, or set {ROOT_VARIABLE} to another disk"
            )

    def pip(self, *arguments: str) -> list[str]:
        command = [str(self.python), "-m", "pip", "install", "--disable-pip-version-check"]
        return [*command, *arguments]

    def site_packages(self) -> Path:
        (found,) = self.folder.glob("lib/python3.*/site-packages")
        return found

    def variables(self) -> dict[str, str | None]:
        """Environment variables for a process in it, as its `activate` would set them."""
        path = os.environ.get("PATH", os.defpath)
        return {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{path}",
            "VIRTUAL_ENV": str(self.folder),
            "PYTHONPATH": None,
            "PYTHONHOME": None,
        }


def environments_root(environ: Mapping[str, str] = os.environ) -> Path:
    """Where environments are: NEURALCHAT_LITE_ENVIRONMENTS, else
    $XDG_DATA_HOME/neuralchat_lite/environments, else ~/.local/share/neuralchat_lite/environments.
    """
    own = environ.get(ROOT_VARIABLE)
    if own:
        return Path(own).expanduser().absolute()
    shared = environ.get("XDG_DATA_HOME")
    data = Path(shared) if shared else Path.home() / ".local/share"
    return data / "neuralchat_lite/environments"


def engine_environment(name: str) -> Environment:
    """The environment of an engine of ours. Raises ConfigError for one that needs none."""
    if name not in ENVIRONMENTS:
        raise ConfigError(
            f"engine {name!r} has no environment of its own, expected {' or '.join(ENVIRONMENTS)}"
        )
    descriptions = Path(__file__).parent / "requirements"
    command = f"neuralchat-lite engines setup {name}"
    return Environment.described(name, descriptions, environments_root(), command)


def step_options(file: Path, torch_index: str | None, source: str) -> list[str]:
    """pip's options for a requirement file."""
    options = STEPS[Path(file.stem).suffix]
    if options is not None:
        return options
    if torch_index:
        return ["--no-deps", "--index-url", torch_index]
    return [] if TORCH_SOURCES[source] else ["--no-deps"]


def packages(file: Path) -> list[str]:
    """What a requirement file names, for people."""
    lines = (line.split("#")[0].strip() for line in read(file).splitlines())
    return [line for line in lines if line]


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def python_version(python: Path) -> str | None:
    """ "3.11.7", or None for what is no Python 3 that can make environments."""
    code = "import sys, venv, ensurepip; print('%d.%d.%d' % sys.version_info[:3])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = done.stdout.strip()
    return version if done.returncode == 0 and version.startswith("3.") else None


def this_cpu() -> frozenset[str]:
    """The feature flags of the CPU, as /proc/cpuinfo calls them."""
    try:
        found = re.search(
            r"^(?:flags|Features)\s*:(.*)$", read(Path("/proc/cpuinfo")), re.MULTILINE
        )
    except OSError:
        found = None
    return frozenset(found[1].split() if found else ())


def run(command: list[str]) -> None:
    """Run a step of a setup; its output goes to stderr. Raises EngineError when it fails."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=2, check=False)
    except OSError as error:
        raise EngineError(f"cannot run {command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        raise EngineError(
            f"`{' '.join(command)}` failed with status {done.returncode}: see its messages above, "
            "and run the setup again"
        )
