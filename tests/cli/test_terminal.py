"""What is read from the terminal and written to it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from neuralchat_lite.cli import app, terminal


def test_text_that_is_not_utf8_is_refused_and_a_chat_goes_on(stories: str, cache: Path) -> None:
    command = [sys.executable, "-m", "neuralchat_lite"]
    one = [*command, "generate", stories, "-p", "-", "--max-new-tokens", "3"]
    chat = [*command, "chat", stories, "--max-new-tokens", "3"]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    first = subprocess.run(one, input=b"a\xff", capture_output=True, env=environment)
    assert first.returncode == 2 and b"not valid UTF-8" in first.stderr
    lines = b"hi\na\xffb\nmore\n"
    for env in (environment, os.environ | {"PYTHONIOENCODING": "utf-8:surrogateescape"}):
        second = subprocess.run(chat, input=lines, capture_output=True, env=env)
        assert second.returncode == 0, second.stderr
        assert b"not valid UTF-8" in second.stderr


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


PIECES = ("\x1b", "[31mred", "\x1b]0;ti", "tle\x07", "\x9b2J", "a\r", "\nb\tc\x08", "\u202eevil")


def test_a_terminal_gets_no_controls_however_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, file = Screen(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    for piece in PIECES:
        terminal.write(piece)
    assert screen.getvalue() == (
        r"\x1b[31mred\x1b]0;title\x07\x9b2Ja" + "\nb\tc" + r"\x08\u202eevil"
    )
    monkeypatch.setattr(sys, "stdout", file)
    for piece in PIECES:
        terminal.write(piece)
    assert file.getvalue() == "".join(PIECES)


def test_no_name_steers_the_terminal(
    run: Callable[..., tuple[int, str, str]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "a\x1b[2Jb\x9bc-int4-g32-0123456789ab"
    (cache / name).mkdir(parents=True)
    (cache / f".{name}.lock").touch()
    assert "\x1b" not in run("generate", str(cache / name), "x")[2]
    assert "\x1b" not in run("cache", "verify", name)[2]
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    app.app(["cache", "list"], standalone_mode=False)
    assert "Jb" in screen.getvalue()
    assert not {"\x1b", "\x9b"} & set(screen.getvalue())


def test_what_is_logged_and_traced_is_filtered_too(
    run: Callable[..., tuple[int, str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    run("--version")
    import logging

    logging.getLogger("neuralchat_lite.loading").warning("the adapter %s", "\x1b[2J")
    try:
        raise KeyError("\x1b[2J") from ValueError("\x1b[2J".lower())
    except KeyError as error:
        terminal.show_traceback(type(error), error, error.__traceback__)
    said = capsys.readouterr().err
    assert "the adapter" in said and "ValueError" in said
    assert "\x1b" not in said
