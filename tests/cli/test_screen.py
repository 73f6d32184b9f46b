"""A chat on a terminal, seen through a pseudo-terminal, with a model that is made of paper."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from neuralchat_lite.cli import screen
from neuralchat_lite.cli.screen import Wrapper, is_open, understood

from ..patience import patience

COLUMNS = 40
PROMPT = "\x1b[0m>"  # with the colour that prompt_toolkit sets
# Answers every message with itself, waits for a file, and goes on for some lines.
PAPER = """
import sys, time
from pathlib import Path
from types import SimpleNamespace as Made

class Paper:
    folder, config = Path("/nowhere"), None
    chat_template = "its own"
    def __init__(self):
        self.tokenizer = self
    def conversation(self, system, **options):
        return self
    def stream(self, text):
        time.sleep(0.3)
        words = [repr(text), " BEGIN "]
        words += [" " + word for word in ("antidisestablishment " * 12).split()]
        for index, word in enumerate([*words, " END"]):
            while index == 2 and not Path(sys.argv[1]).exists():
                time.sleep(0.01)
            for part in (word[:4], word[4:]):
                yield Made(text=part, finish_reason=None, timings=None)

import neuralchat_lite.api
neuralchat_lite.api.load = lambda *_, **__: Paper()
from neuralchat_lite.cli.app import main
main(["chat", "paper"])
"""


@pytest.fixture
def go(tmp_path: Path) -> Path:
    """The file that the model waits for."""
    return tmp_path / "go"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def terminal(go: Path, state: Path, cache: Path) -> Iterator[Any]:
    environment = os.environ | {"TERM": "xterm", "XDG_STATE_HOME": str(state), "LANG": "C.UTF-8"}
    environment["COLUMNS"] = "80"  # as exported elsewhere; the terminal's own width counts
    environment["PROMPT_TOOLKIT_NO_CPR"] = "1"  # pexpect does not answer where the cursor is
    child = pexpect.spawn(
        sys.executable,
        ["-c", PAPER, str(go)],
        env=environment,
        encoding="utf-8",
        dimensions=(24, COLUMNS),
        # whoever runs the tests may ignore it, as nohup does
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        timeout=patience(30),
    )
    child.delaybeforesend = 0
    child.expect_exact(PROMPT)
    yield child
    child.close(force=True)


def test_a_paste_is_one_message(terminal: Any, go: Path, state: Path) -> None:
    go.touch()
    terminal.send("\x1b[200~one\n/two\nthree\x1b[201~")
    terminal.send("\r")
    terminal.expect_exact(r"'one\n/two\nthree'")
    terminal.expect("END")
    terminal.expect_exact(PROMPT)
    kept = state / "neuralchat_lite/history"
    assert "+/two" in kept.read_text()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    terminal.send("\x04")
    terminal.expect(pexpect.EOF)
    terminal.wait()
    assert terminal.exitstatus == 0


def test_triple_quotes_hold_a_message_of_several_lines(terminal: Any, go: Path) -> None:
    go.touch()
    terminal.send('"""one\r')
    terminal.send('two"""\r')
    terminal.expect_exact(r"'one\ntwo'")
    terminal.expect("END")


def test_typing_does_not_mix_into_an_answer_and_is_not_lost(terminal: Any, go: Path) -> None:
    terminal.send("Hello\r")
    terminal.expect("BEGIN")
    terminal.send("secret")
    terminal.expect(pexpect.TIMEOUT, timeout=0.3)
    assert "secret" not in terminal.before
    go.touch()
    terminal.expect("END")
    assert "secret" not in terminal.before
    terminal.expect("secret")  # at the next prompt


def test_words_do_not_break_and_a_spinner_turns_until_they_come(terminal: Any, go: Path) -> None:
    go.touch()
    terminal.send("Hello\r")
    terminal.expect("BEGIN")
    assert re.search("[\u2800-\u28ff]", terminal.before)  # the spinner's dots
    terminal.expect("END")
    lines = terminal.before.splitlines()
    assert len(lines) > 6
    for line in lines:
        assert len(line) <= COLUMNS
        assert set(line.split()) <= {"antidisestablishment"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_a_chat_leaves_the_terminal_as_it_was(
    terminal: Any, number: signal.Signals
) -> None:
    terminal.send("Hello\r")
    terminal.expect("BEGIN")
    assert not terminal.getecho()
    terminal.kill(number)
    terminal.expect(pexpect.EOF)
    terminal.wait()
    assert terminal.signalstatus == number
    assert terminal.getecho()


@pytest.mark.parametrize(
    ("text", "wrapped"),
    [
        ("one two three four", "one two\nthree four"),
        ("a  b\n\n    code xy", "a  b\n\n    code\nxy"),
        ("0123456789 x", "0123456789\nx"),
        ("0123456789abcdef xyz", "0123456789abcdef xyz"),
        ("ab 漢字漢字漢字", "ab 漢字漢\n字漢字"),
        ("ab\tc \n", "ab      c\n"),
        ("12345678 \n\nx ", "12345678\n\nx"),
        ("", ""),
    ],
)
def test_lines_break_between_words_however_the_text_is_cut(text: str, wrapped: str) -> None:
    for size in (1, 2, 3, 99):
        wrapper = Wrapper(lambda: 10)
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert "".join(map(wrapper.push, pieces)) + wrapper.finish() == wrapped


def test_only_a_chat_on_a_terminal_needs_the_editor() -> None:
    code = (
        "import sys, neuralchat_lite.cli.app, neuralchat_lite.cli.screen\n"
        "assert not {'prompt_toolkit', 'rich.status'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_a_command_and_what_a_message() -> None:
    assert understood("/help").is_command
    assert not understood("/usr/bin\nis a folder").is_command
    quoted = understood('"""/help"""')
    assert (quoted.text, quoted.is_command) == ("/help", False)
    for text, open_ in (('"""', True), ('"""a', True), ('"""a\nb"""', False), ("a", False)):
        assert is_open(text) is open_


def test_a_history_that_cannot_be_kept_ends_no_chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    for state, make in ((blocked, None), (tmp_path, Path.mkdir)):
        monkeypatch.setenv("XDG_STATE_HOME", str(state))
        if make is not None:
            screen.history_path().mkdir(parents=True)
        kept = screen.history()
        kept.append_string("x")
        assert "keeps no history" in capsys.readouterr().err
