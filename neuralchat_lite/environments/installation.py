"""Installing and removing an environment. An interruption leaves one that counts as unfinished."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from neuralchat_lite.environments.cuda_stubs import make_stubs
from neuralchat_lite.environments.description import (
    TORCH_SOURCES,
    packages,
    python_range,
    size_in_bytes,
    step_options,
)
from neuralchat_lite.environments.environment import ROOT_VARIABLE, STAMP, Environment
from neuralchat_lite.environments.host import in_range, python_version
from neuralchat_lite.errors import ConfigError, EngineError

INDEX_VARIABLE = "NEURALCHAT_LITE_TORCH_INDEX"


def install(
    environment: Environment,
    *,
    python: str | None = None,
    torch_index: str | None = None,
    stub_cuda: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Make the environment, unless it is ready.

    python: the interpreter that makes it; None for a suitable one of this machine
    torch_index: a package index of CPU builds of torch; None for NEURALCHAT_LITE_TORCH_INDEX.
        If neither is given, torch comes from pip's default index.
    stub_cuda: install torch without CUDA's libraries, and stubs in their place
    say: called with a line for each step; the first line gives the size
    Raises ConfigError or EngineError. The environment then counts as unfinished.
    """
    torch_index = torch_index or os.environ.get(INDEX_VARIABLE) or None
    if torch_index and stub_cuda:
        raise ConfigError("an index of CPU builds needs no stubs of CUDA: give one of the two")
    source = "index" if torch_index else "stubs" if stub_cuda else "registry"
    chosen = choose_python(environment, python)
    name, folder = environment.name, environment.folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EngineError(f"cannot make {folder}: {error.strerror}") from error
    with lock_of(environment):
        if environment.state() == "ready":
            say(f"{name} is installed already, in {folder}")
            return
        say(f"{name}: {environment.size_text(TORCH_SOURCES[source])}, in {folder}")
        refuse_full_disk(environment, TORCH_SOURCES[source])
        clear(environment)
        folder.mkdir()
        environment.write_stamp()
        run([str(chosen), "-m", "venv", str(folder)])
        for file in environment.requirements:
            say(f"{name}: installing {', '.join(packages(file))}")
            run(pip(environment, *step_options(file, torch_index, source), "-r", str(file)))
        if stub_cuda:
            say(f"{name}: installing stubs of CUDA's libraries; this torch computes on CPUs only")
            make_stubs(site_packages(environment))
        environment.write_stamp(
            requirements=environment.digest(),
            python=python_version(environment.python),
            torch=source,
        )
        say(f"{name} is installed")


def remove(environment: Environment) -> bool:
    """Delete the environment, finished or not. Returns whether there was one."""
    there = environment.folder.exists()
    if there:
        with lock_of(environment):
            clear(environment)
    return there


def lock_of(environment: Environment) -> FileLock:
    return FileLock(environment.folder.parent / f".{environment.name}.lock")


def clear(environment: Environment) -> None:
    """Delete the folder. The stamp loses its digest first and is deleted last, so that an
    interruption leaves an unfinished environment, which can be deleted again."""
    if not environment.folder.exists():
        return
    children = {child.name: child for child in environment.folder.iterdir()}
    stamp = children.pop(STAMP, None)
    if stamp is None and children:
        raise EngineError(
            f"{environment.folder} is not an environment of neuralchat_lite: move it away, or set "
            f"{ROOT_VARIABLE} to another folder"
        )
    if stamp is not None:
        environment.write_stamp()
    for child in children.values():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()
    (environment.folder / STAMP).unlink(missing_ok=True)
    environment.folder.rmdir()


def choose_python(environment: Environment, asked: str | None) -> Path:
    rule = environment.python_rule()
    if asked is None:
        for found in environment.interpreters():
            return found
        raise EngineError(
            f"the environment of {environment.name} {rule}, and none is on the PATH: install one, "
            "or name it with --python"
        )
    path = shutil.which(asked)
    version = python_version(Path(path)) if path else None
    if not in_range(version, *python_range(environment.facts())):
        raise ConfigError(
            f"the environment of {environment.name} {rule}, and {asked} is "
            f"{version or 'not a Python 3 with venv and pip'}: name another"
        )
    assert path is not None
    return Path(path)


def refuse_full_disk(environment: Environment, with_cuda: bool) -> None:
    disk = environment.sizes(with_cuda)[1]
    needed = size_in_bytes(disk or "")
    free = shutil.disk_usage(environment.folder.parent).free
    if needed is not None and needed > free:
        raise EngineError(
            f"the environment of {environment.name} takes {disk}, and "
            f"{environment.folder.parent} has {free / 1e9:.1f} GB left: make room, or set "
            f"{ROOT_VARIABLE} to another disk"
        )


def pip(environment: Environment, *arguments: str) -> list[str]:
    command = [str(environment.python), "-m", "pip", "install", "--disable-pip-version-check"]
    return [*command, *arguments]


def site_packages(environment: Environment) -> Path:
    (found,) = environment.folder.glob("lib/python3.*/site-packages")
    return found


def run(command: list[str]) -> None:
    """Run a step of a setup, with its output on stderr. Raises EngineError if it fails."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=2, check=False)
    except OSError as error:
        raise EngineError(f"cannot run {command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        raise EngineError(
            f"`{' '.join(command)}` failed with status {done.returncode}: see its messages above, "
            "and run the setup again"
        )
