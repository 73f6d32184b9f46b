"""The command line as a whole: help, errors on one line, and exit codes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuralchat_lite.cli import app as cli
from neuralchat_lite.cli import generate

from ..patience import patience

Run = Callable[..., tuple[int, str, str]]
COMMAND = [sys.executable, "-m", "neuralchat_lite"]
PROMPT = "Once upon a time"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "/nowhere", "-p", "x"], "there is no folder '/nowhere'"),
        (["generate", "STORIES", "-p", ""], "the prompt is an empty string"),
        (["generate", "STORIES", "-p", "x", "--max-new-tokens", "0"], "max_new_tokens must be"),
        (["generate", "STORIES", "-p", "x", "--top-k", "5"], "no effect with temperature 0"),
        (["generate", "STORIES", "-p", "x", "--weight-dtype", "nf4"], "weight_dtype='nf4'"),
        (["generate", "STORIES", "-p", "x", "--threads", "0"], "threads must be"),
        (["generate", "STORIES", "-p", "x", "--system", "y"], "give --chat too"),
        (["generate", "STORIES", "-p", "x", "--temperature", "hot"], "--temperature"),
        (["generate", "STORIES", "-p", "a\udcff"], "at character 1: decode it"),
        (["generate", "STORIES", "-p", "x", "--context-length", "513"], "512 positions, got 513"),
        (["generate", "x" * 5000, "-p", "x"], "cannot be opened as a model folder"),
        (["generate", "~nobody-here/x", "-p", "x"], "cannot be opened as a model folder"),
        (["quantize", "STORIES", "--compute-dtype", "fp32"], "not a property of quantized weights"),
        (["generate", "STORIES"], "there is no prompt"),
        (["generate", "STORIES", "a", "-p", "b"], "the prompt was given twice"),
        (["generate", "STORIES", "a", "--raw", "--chat"], "opposites"),
        (["generate", "STORIES", "a", "--raw", "--system", "y"], "leave --raw or --system out"),
        (["generate", "STORIES", "a", "--stop", "\\q"], "--stop has \\q in it"),
        (["generate", "STORIES", "a", "--stop", "end\\"], "write a backslash itself twice"),
        (["quantize", "STORIES", "-o", "TMP"], "not an empty folder"),
        (["cache", "verify", "nothing"], "there is no entry 'nothing'"),
        (["cache", "remove"], "give the names of entries"),
        (["dance"], "No such command 'dance'"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    run: Run, stories: str, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "file").write_text("")
    names = {"STORIES": stories, "TMP": str(tmp_path)}
    code, _, err = run(*(names.get(argument, argument) for argument in arguments))
    last = err.splitlines()[-1]
    assert code == 2
    assert message in last
    assert last.startswith("neuralchat-lite: ")
    assert "Traceback" not in err
    assert err.count("neuralchat-lite: ") == 1


def test_debug_shows_where_it_went_wrong(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cli.DEBUG_VARIABLE, "")  # set by --debug; put back after the test
    with pytest.raises(cli.NeuralchatError, match="no folder"):
        cli.main(["--debug", "generate", "/nowhere", "-p", "x"])


def test_a_bug_is_told_from_bad_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("oops")

    monkeypatch.setattr(generate, "load_model", broken)
    code, _, err = run("generate", "x", "-p", "x")
    assert code == 1
    assert (
        err == "neuralchat-lite: internal error, KeyError: 'oops' (run with --debug to see where)\n"
    )


def test_help_shows_every_command_without_loading_torch() -> None:
    code = "import sys; from neuralchat_lite.cli.app import app\n"
    code += "app(['--help'], standalone_mode=False)\n"
    code += "assert not {'torch', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("generate", "chat", "quantize", "merge", "cache", "doctor"):
        assert command in done.stdout


def test_version_is_printed(run: Run) -> None:
    assert re.fullmatch(r"neuralchat-lite \d.*\n", run("--version")[1])


def test_without_a_command_the_help_is_shown(run: Run) -> None:
    code, out, err = run()
    assert (code, err) == (2, "")
    assert "Usage: neuralchat-lite" in out


def test_ctrl_c_exits_with_130_and_no_traceback(stories: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "generate", "-p", "-", stories],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NEURALCHAT_LITE_CACHE": str(tmp_path)},
    )
    assert process.stdin is not None
    process.stdin.write("x" * 1_000_000)  # more than a pipe holds: it reads its prompt
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=patience(30))
    assert (process.returncode, err) == (130, "")


def test_a_closed_pipe_ends_without_a_traceback(stories: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "generate", stories, "-p", PROMPT, "--dtype", "fp32"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NEURALCHAT_LITE_CACHE": str(tmp_path)},
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    assert process.wait(patience(30)) == cli.CLOSED_PIPE
    process.stderr.close()
