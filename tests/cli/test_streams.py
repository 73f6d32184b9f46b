"""Streams that are closed, full or left by their reader end a command with one line at most."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ..patience import patience

COMMAND = f"{sys.executable} -m neuralchat_lite"


@pytest.fixture
def shell(cache: Path):
    """Run a shell command line: (exit code, stdout, stderr)."""

    def run(line: str) -> tuple[int, str, str]:
        done = subprocess.run(
            ["bash", "-c", line.replace("neuralchat-lite", COMMAND)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patience(120),
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.parametrize("command", ["chat STORIES", "generate STORIES -p -"])
def test_a_closed_stdin_is_bad_input_before_a_model_is_loaded(
    shell, stories: str, cache: Path, command: str
) -> None:
    code, out, err = shell(f"neuralchat-lite {command.replace('STORIES', stories)} <&-")
    assert (code, out) == (2, "")
    assert err.startswith("neuralchat-lite: stdin is closed: ") and err.count("\n") == 1
    assert not cache.exists()


def test_a_closed_stdin_does_not_matter_where_it_is_not_read(shell, stories: str) -> None:
    code, out, err = shell(f"neuralchat-lite generate {stories} Once --max-new-tokens 3 <&-")
    assert code == 0 and out.startswith("Once"), err


@pytest.mark.parametrize("command", ["generate STORIES Once", "cache list", "--help", "--version"])
def test_a_closed_stdout_is_bad_input(shell, stories: str, cache: Path, command: str) -> None:
    code, _, err = shell(f"neuralchat-lite {command.replace('STORIES', stories)} >&-")
    assert (code, err.count("\n")) == (2, 1)
    assert "stdout is closed: send it to a file" in err
    assert not cache.exists()


def test_a_closed_stderr_loses_only_what_goes_there(shell, stories: str) -> None:
    code, out, _ = shell(f"neuralchat-lite generate {stories} Once --max-new-tokens 3 2>&-")
    assert code == 0
    assert out.startswith("Once") and "Quantizing" not in out and "prompt is" not in out


def test_all_streams_closed_writes_into_no_file(shell, stories: str, cache: Path) -> None:
    code, _, _ = shell(f"neuralchat-lite quantize {stories} <&- 2>&- | cat")
    assert code == 0
    folder = next(path for path in cache.iterdir() if "int4" in path.name and path.is_dir())
    assert shell(f"neuralchat-lite cache verify {folder.name}")[0] == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["quantize STORIES", "--version"])
def test_a_full_disk_under_stdout_is_one_line(shell, stories: str, command: str) -> None:
    code, _, err = shell(f"neuralchat-lite {command.replace('STORIES', stories)} > /dev/full")
    assert code == 2
    assert "Traceback" not in err and "Exception ignored" not in err
    assert err.splitlines()[-1].startswith("neuralchat-lite: No space left on device")


@pytest.mark.parametrize("command", ["quantize STORIES", "--help"])
def test_a_reader_that_leaves_ends_a_command_as_it_ends_others(
    shell, stories: str, command: str
) -> None:
    line = f"neuralchat-lite {command.replace('STORIES', stories)} 2>errors | true"
    code, out, _ = shell(f"cd $(mktemp -d); {line}; echo ${{PIPESTATUS[0]}}; cat errors")
    status, *errors = out.splitlines()
    assert code == 0 and status in ("141", "0"), out
    assert not any("Traceback" in each or "Exception ignored" in each for each in errors), errors


def test_what_cannot_be_read_is_bad_input(shell, stories: str, tmp_path: Path) -> None:
    code, _, err = shell(f"neuralchat-lite generate {stories} -p - 0>{tmp_path}/out")
    assert (code, err.count("\n")) == (2, 1)
    assert "stdin cannot be read" in err
