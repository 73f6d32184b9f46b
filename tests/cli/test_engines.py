"""`neuralchat-lite engines`, and --engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuralchat_lite.cli import app as cli
from neuralchat_lite.environments import environment as environments
from neuralchat_lite.environments import installation
from neuralchat_lite.environments.environment import ROOT_VARIABLE, Environment, engine_environment


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "environments"))
    monkeypatch.setattr(environments, "this_cpu", lambda: frozenset(("avx2", "fma")))
    monkeypatch.setattr(Environment, "interpreters", lambda self: iter([Path("python3")]))
    return tmp_path / "environments"


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments))
    output = capsys.readouterr()
    assert (left.value.code or 0) == code, output.err
    return output.out if code == 0 else output.err


def test_list_says_what_would_be_downloaded(capsys: pytest.CaptureFixture[str]) -> None:
    rows = dict(line.split("\t", 1) for line in run(capsys, "engines", "list").splitlines())
    assert list(rows) == ["native", "torch", "ipex", "itrex"]
    assert rows["native"].startswith("ready\t")
    assert rows["ipex"].startswith("not installed\t")
    assert "0.94 GB to download, 2.3 GB on disk" in rows["ipex"]
    assert "`neuralchat-lite engines setup itrex`" in rows["itrex"]


def test_list_says_what_is_installed_and_what_cannot_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = engine_environment("ipex")
    ready.python.parent.mkdir(parents=True)
    ready.python.touch()
    ready.write_stamp(requirements=ready.digest(), python="3.11.2", torch="stubs")
    installed = run(capsys, "engines", "list")
    assert f"ipex\tready\tin {ready.folder} (Python 3.11.2, torch from stubs)" in installed
    monkeypatch.setattr(environments, "this_cpu", lambda: frozenset(("sse2",)))
    lacking = run(capsys, "engines", "list")
    assert "ipex\tcannot run\tneeds a CPU with avx2, fma; this one lacks avx2" in lacking


def test_setup_hands_its_options_on_and_remove_deletes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, object]] = []
    monkeypatch.setattr(installation, "install", lambda _, **options: seen.append(options))
    monkeypatch.setenv("NEURALCHAT_LITE_TORCH_INDEX", "https://index.example/cpu")
    run(capsys, "engines", "setup", "ipex", "--python", "python3.11")
    monkeypatch.delenv("NEURALCHAT_LITE_TORCH_INDEX")
    run(capsys, "engines", "setup", "ipex", "--stub-cuda")
    names = ("python", "torch_index", "stub_cuda")
    assert [tuple(options[name] for name in names) for options in seen] == [
        ("python3.11", "https://index.example/cpu", False),
        (None, None, True),
    ]
    assert run(capsys, "engines", "remove", "itrex") == "itrex\twas not there\n"
    folder = engine_environment("itrex").folder
    folder.mkdir(parents=True)
    assert run(capsys, "engines", "remove", "itrex") == "itrex\tremoved\n"
    assert not folder.exists()


@pytest.mark.parametrize("name", ["torch", "vllm"])
def test_an_engine_without_environment_has_no_setup(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run(capsys, "engines", "setup", name, code=2)
    assert f"engine '{name}' has no environment of its own, expected ipex or itrex" in said


def test_generate_takes_an_engine(stories: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", stories, "-p", "Once upon a time", "--max-new-tokens", "8"]
    native = run(capsys, *words, "--dtype", "fp32")
    assert run(capsys, *words, "--dtype", "fp32", "--engine", "torch") == native
    said = run(capsys, *words, "--engine", "ipex", code=2)
    assert "is not installed: run `neuralchat-lite engines setup ipex`" in said
