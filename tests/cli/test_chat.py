"""`neuralchat-lite chat`: what is kept, what is forgotten, and what does not end it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from neuralchat_lite.cli import replies

Run = Callable[..., tuple[int, str, str]]
Say = Callable[..., None]


def test_chat_keeps_what_was_said_until_reset(run: Run, stories: str, say: Say) -> None:
    say("Hello", "", "More", "/reset", "Hello", "/what", "/quit", "never")
    command = ("chat", stories, "--max-new-tokens", "12", "--timings")
    code, out, err = run(*command)
    assert code == 0
    fed = re.findall(r"\((\d+) of (\d+) prompt tokens fed\)", err)
    assert len(fed) == 3
    assert [new == all for new, all in fed] == [True, False, True]
    assert "/what is not a command" in err
    assert "forgotten" in err
    say("Hello")
    first = run(*command)[1]
    assert out.startswith(first)
    assert out.endswith(first)


def test_chat_goes_on_when_a_message_does_not_fit(run: Run, stories: str, say: Say) -> None:
    say("long " * 600, "Hello")
    code, out, err = run("chat", stories, "--max-new-tokens", "5")
    assert code == 0
    assert "/reset starts a new conversation" in err
    assert out.strip()


def test_ctrl_c_cancels_an_answer_and_the_chat_goes_on(
    run: Run, stories: str, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def write(text: str) -> None:
        shown.append(text)
        if len(shown) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(replies, "write", write)
    say("Hello", "More")
    code, _, err = run("chat", stories, "--max-new-tokens", "10")
    assert code == 0
    assert "\n(cancelled)\n" in err
    assert len(shown) > 10
