"""Installing and removing environments: they are whole or not used. No network."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from neuralchat_lite.environments import installation
from neuralchat_lite.environments.environment import Environment
from neuralchat_lite.environments.installation import install, remove
from neuralchat_lite.errors import ConfigError, EngineError

from .conftest import pretend_ready, write_wheel


def test_an_environment_is_made_whole_and_made_again_when_its_files_change(
    described: Environment, tmp_path: Path
) -> None:
    said: list[str] = []
    install(described, say=said.append)
    assert described.state() == "ready"
    assert said[0] == f"tiny: 4 GB to download, 7 GB on disk, in {described.folder}"
    code = "import sys, tiny; print(tiny.VERSION, sys.prefix)"
    output = subprocess.check_output([described.python, "-c", code], text=True)
    assert output.split() == ["1.0", str(described.folder)]
    assert described.stamp()["torch"] == "registry"

    said.clear()
    install(described, say=said.append)
    assert said == [f"tiny is installed already, in {described.folder}"]

    wheel = write_wheel(tmp_path, "2.0")
    described.requirements[0].write_text(f"tiny @ {wheel.as_uri()}\n")
    assert described.state() == "outdated"
    install(described, say=said.append)
    assert subprocess.check_output([described.python, "-c", code], text=True).startswith("2.0")


@pytest.mark.parametrize("step", [0, 1, 2], ids=["venv", "first file", "second file"])
def test_an_interrupted_setup_is_unfinished_and_begins_anew(
    described: Environment, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[list[str]] = []

    def run(command: list[str]) -> None:
        if len(steps) == step:
            raise KeyboardInterrupt
        steps.append(command)
        (described.folder / f"part-{len(steps)}").touch()

    monkeypatch.setattr(installation, "run", run)
    with pytest.raises(KeyboardInterrupt):
        install(described, say=lambda _: None)
    assert described.state() == "unfinished"
    with pytest.raises(EngineError, match=r"unfinished: .* was interrupted: run `make tiny`"):
        described.require_ready()
    steps.clear()
    monkeypatch.setattr(installation, "run", lambda command: steps.append(command))
    install(described, say=lambda _: None)
    assert len(steps) == 3
    assert not list(described.folder.glob("part-*"))


def test_a_failing_step_is_said_with_its_command(described: Environment) -> None:
    described.requirements[0].write_text("tiny @ file:///nowhere/tiny-1.0-py3-none-any.whl\n")
    with pytest.raises(EngineError, match=r"pip install .*tiny.no-deps.txt` failed with status 1"):
        install(described, say=lambda _: None)
    assert described.state() == "unfinished"


@pytest.mark.parametrize(
    ("options", "torch_options", "torch_source", "size"),
    [
        ({}, [], "registry", "4 GB to download, 7 GB on disk"),
        ({"stub_cuda": True}, ["--no-deps"], "stubs", "12 MB to download, 30 MB on disk"),
        (
            {"torch_index": "https://index.example/cpu"},
            ["--no-deps", "--index-url", "https://index.example/cpu"],
            "index",
            "12 MB to download, 30 MB on disk",
        ),
    ],
)
def test_torch_comes_first_and_from_where_it_is_asked_for(
    described: Environment,
    options: dict[str, str | bool],
    torch_options: list[str],
    torch_source: str,
    size: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = described.requirements[0].parent
    (folder / "tiny.torch.txt").write_text("torch==1.2.3\n")
    environment = Environment.described("tiny", folder, described.folder.parent, "make tiny")
    commands: list[list[str]] = []
    monkeypatch.setattr(installation, "run", lambda command: commands.append(command))
    monkeypatch.setattr(installation, "make_stubs", lambda _: commands.append(["stubs"]))
    monkeypatch.setattr(installation, "site_packages", lambda made: made.folder)
    monkeypatch.setattr(installation, "refuse_full_disk", lambda *_: None)
    said: list[str] = []
    install(environment, say=said.append, **options)  # type: ignore[arg-type]
    assert size in said[0]
    files = [folder / f"tiny{ending}.txt" for ending in (".torch", ".no-deps", "")]
    asked = [torch_options, ["--no-deps"], []]
    pip = installation.pip(environment)
    expected = [[*pip, *extra, "-r", str(file)] for extra, file in zip(asked, files, strict=True)]
    assert commands[1:4] == expected
    assert commands[4:] == ([["stubs"]] if torch_source == "stubs" else [])
    assert environment.stamp()["torch"] == torch_source


def test_an_index_and_stubs_together_are_refused(described: Environment) -> None:
    with pytest.raises(ConfigError, match="needs no stubs"):
        install(described, torch_index="https://index.example/cpu", stub_cuda=True)


def test_removing_leaves_nothing(described: Environment) -> None:
    assert not remove(described)
    pretend_ready(described)
    assert described.state() == "ready"
    assert remove(described)
    assert described.state() == "absent"


def test_a_folder_of_somebody_else_is_left_alone(described: Environment) -> None:
    described.folder.mkdir(parents=True)
    (described.folder / "thesis.txt").write_text("precious")
    for action in (remove, install):
        with pytest.raises(EngineError, match="is not an environment of neuralchat_lite: move"):
            action(described)
    assert [path.name for path in described.folder.iterdir()] == ["thesis.txt"]


def test_a_removal_that_is_interrupted_can_be_repeated(
    described: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_ready(described)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            remove(described)
    assert described.state() == "unfinished"
    assert remove(described) and described.state() == "absent"


def test_a_python_of_another_version_is_refused(described: Environment) -> None:
    file = described.requirements[-1]
    file.write_text("# python: 3.2 to 3.3\n")
    with pytest.raises(ConfigError, match=r"needs Python 3.2 to 3.3, and .* is 3\.\d+\.\d+: name"):
        install(described, python=sys.executable)
    with pytest.raises(EngineError, match=r"needs Python 3.2 to 3.3, and none is on the PATH"):
        install(described)
    with pytest.raises(ConfigError, match="and sleep is not a Python 3 with venv and pip"):
        install(described, python="sleep")
    assert described.state() == "absent"


def test_a_disk_that_is_too_small_is_refused_with_the_figures(described: Environment) -> None:
    described.requirements[-1].write_text("# disk with CUDA: 99999999 GB\n")
    with pytest.raises(EngineError, match=r"takes 99999999 GB, and .* has [\d.]+ GB left"):
        install(described, say=lambda _: None)
    assert described.state() == "absent"
