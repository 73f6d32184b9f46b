"""What is read from the terminal and written to it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


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
