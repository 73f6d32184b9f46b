"""Environments: what is said of them, and that they are whole or not used. No network."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from neuralchat_lite.environments import environment as environments
from neuralchat_lite.environments.environment import (
    Environment,
    engine_environment,
    environments_root,
)
from neuralchat_lite.errors import ConfigError, EngineError

FACTS = f"""\
# about: a package for tests
# download: 12 MB
# disk: 30 MB
# download with CUDA: 4 GB
# disk with CUDA: 7 GB
# python: 3.{sys.version_info[1]}
# cpu: x1 x2
"""


def write_wheel(folder: Path, version: str) -> Path:
    """A wheel of the package tiny, with its version in tiny.VERSION."""
    info = f"tiny-{version}.dist-info"
    files = {
        "tiny.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    path = folder / f"tiny-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return path


@pytest.fixture
def described(tmp_path: Path) -> Environment:
    """An environment of a local wheel, not made yet."""
    descriptions = tmp_path / "requirements"
    descriptions.mkdir()
    wheel = write_wheel(tmp_path, "1.0")
    (descriptions / "tiny.no-deps.txt").write_text(f"tiny @ {wheel.as_uri()}\n")
    (descriptions / "tiny.txt").write_text(FACTS)
    return Environment.described("tiny", descriptions, tmp_path / "root", "make tiny")


def pretend_ready(environment: Environment) -> None:
    environment.python.parent.mkdir(parents=True)
    environment.python.symlink_to(sys.executable)
    environment.write_stamp(requirements=environment.digest())


def test_an_environment_is_made_whole_and_made_again_when_its_files_change(
    described: Environment, tmp_path: Path
) -> None:
    said: list[str] = []
    described.setup(say=said.append)
    assert described.state() == "ready"
    assert said[0] == f"tiny: 4 GB to download, 7 GB on disk, in {described.folder}"
    code = "import sys, tiny; print(tiny.VERSION, sys.prefix)"
    output = subprocess.check_output([described.python, "-c", code], text=True)
    assert output.split() == ["1.0", str(described.folder)]
    assert described.stamp()["torch"] == "registry"

    said.clear()
    described.setup(say=said.append)
    assert said == [f"tiny is installed already, in {described.folder}"]

    wheel = write_wheel(tmp_path, "2.0")
    described.requirements[0].write_text(f"tiny @ {wheel.as_uri()}\n")
    assert described.state() == "outdated"
    described.setup(say=said.append)
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

    monkeypatch.setattr(environments, "run", run)
    with pytest.raises(KeyboardInterrupt):
        described.setup(say=lambda _: None)
    assert described.state() == "unfinished"
    with pytest.raises(EngineError, match=r"unfinished: .* was interrupted: run `make tiny`"):
        described.require_ready()
    steps.clear()
    monkeypatch.setattr(environments, "run", lambda command: steps.append(command))
    described.setup(say=lambda _: None)
    assert len(steps) == 3
    assert not list(described.folder.glob("part-*"))


def test_a_failing_step_is_said_with_its_command(described: Environment) -> None:
    described.requirements[0].write_text("tiny @ file:///nowhere/tiny-1.0-py3-none-any.whl\n")
    with pytest.raises(EngineError, match=r"pip install .*tiny.no-deps.txt` failed with status 1"):
        described.setup(say=lambda _: None)
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
    monkeypatch.setattr(environments, "run", lambda command: commands.append(command))
    monkeypatch.setattr(environments, "make_stubs", lambda _: commands.append(["stubs"]))
    monkeypatch.setattr(Environment, "site_packages", lambda self: self.folder)
    monkeypatch.setattr(Environment, "refuse_full_disk", lambda *_: None)
    said: list[str] = []
    environment.setup(say=said.append, **options)  # type: ignore[arg-type]
    assert size in said[0]
    files = [folder / f"tiny{ending}.txt" for ending in (".torch", ".no-deps", "")]
    asked = [torch_options, ["--no-deps"], []]
    pip = environment.pip()
    expected = [[*pip, *extra, "-r", str(file)] for extra, file in zip(asked, files, strict=True)]
    assert commands[1:4] == expected
    assert commands[4:] == ([["stubs"]] if torch_source == "stubs" else [])
    assert environment.stamp()["torch"] == torch_source


def test_an_index_and_stubs_together_are_refused(described: Environment) -> None:
    with pytest.raises(ConfigError, match="needs no stubs"):
        described.setup(torch_index="https://index.example/cpu", stub_cuda=True)


def test_removing_leaves_nothing(described: Environment) -> None:
    assert not described.remove()
    pretend_ready(described)
    assert described.state() == "ready"
    assert described.remove()
    assert described.state() == "absent"


def test_a_folder_of_somebody_else_is_left_alone(described: Environment) -> None:
    described.folder.mkdir(parents=True)
    (described.folder / "thesis.txt").write_text("precious")
    for action in (described.remove, described.setup):
        with pytest.raises(EngineError, match="is no environment of ours: move it away"):
            action()
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
            described.remove()
    assert described.state() == "unfinished"
    assert described.remove() and described.state() == "absent"


def test_an_environment_whose_python_is_gone_is_made_again(described: Environment) -> None:
    pretend_ready(described)
    described.python.unlink()
    assert described.state() == "unfinished"


def test_what_a_cpu_lacks_is_named(described: Environment) -> None:
    assert described.obstacles(frozenset(("x1", "x2"))) == []
    (why,) = described.obstacles(frozenset(("x1",)))
    assert why == "needs a CPU with x1, x2; this one lacks x2"


def test_a_python_of_another_version_is_refused(described: Environment) -> None:
    file = described.requirements[-1]
    file.write_text("# python: 3.2 to 3.3\n")
    with pytest.raises(ConfigError, match=r"needs Python 3.2 to 3.3, and .* is 3\.\d+\.\d+: name"):
        described.setup(python=sys.executable)
    with pytest.raises(EngineError, match=r"needs Python 3.2 to 3.3, and none is on the PATH"):
        described.setup()
    with pytest.raises(ConfigError, match="and sleep is no Python 3 with venv and pip"):
        described.setup(python="sleep")
    assert described.state() == "absent"


def test_a_disk_that_is_too_small_is_refused_with_the_figures(described: Environment) -> None:
    described.requirements[-1].write_text("# disk with CUDA: 99999999 GB\n")
    with pytest.raises(EngineError, match=r"takes 99999999 GB, and .* has [\d.]+ GB left"):
        described.setup(say=lambda _: None)
    assert described.state() == "absent"


@pytest.mark.parametrize(
    ("variables", "root"),
    [
        ({"NEURALCHAT_LITE_ENVIRONMENTS": "/a", "XDG_DATA_HOME": "/b"}, Path("/a")),
        ({"XDG_DATA_HOME": "/b"}, Path("/b/neuralchat_lite/environments")),
        ({}, Path.home() / ".local/share/neuralchat_lite/environments"),
    ],
)
def test_the_root_follows_the_environment(variables: dict[str, str], root: Path) -> None:
    assert environments_root(variables) == root


@pytest.mark.parametrize("name", ["ipex", "itrex"])
def test_the_engines_environments_pin_what_they_rest_on(name: str) -> None:
    environment = engine_environment(name)
    pinned = [line for file in environment.requirements for line in environments.packages(file)]
    for package in ("torch", "transformers", "tokenizers", "numpy"):
        assert any(line.startswith(f"{package}==") for line in pinned)
    assert set(environment.facts()) >= {"about", "download", "disk", "python", "cpu"}
    for with_cuda in (False, True):
        assert all(
            size and environments.SIZE.fullmatch(size) for size in environment.sizes(with_cuda)
        )
