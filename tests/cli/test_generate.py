"""`neuralchat-lite generate`: what is printed, and where."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., tuple[int, str, str]]
PROMPT = "Once upon a time"


def golden(stories: str) -> Any:
    return json.loads((Path(stories) / "golden.json").read_text(encoding="utf-8"))[0]


def test_generate_prints_the_known_story(run: Run, stories: str) -> None:
    code, out, _ = run(
        "generate", stories, "-p", PROMPT, "--dtype", "fp32", "--max-new-tokens", "200"
    )
    assert (code, out) == (0, golden(stories)["greedy_text"] + "\n")


def test_generate_quantizes_and_says_so_on_stderr_only(run: Run, stories: str) -> None:
    code, out, err = run("generate", stories, "-p", PROMPT, "--max-new-tokens", "20")
    assert code == 0
    assert out.startswith(golden(stories)["greedy_text"][:40])
    assert re.search(r"^Quantizing \(\d+ kB\)$", err, re.MULTILINE)
    assert run("generate", stories, "-p", PROMPT, "--max-new-tokens", "20") == (0, out, "")


def test_prompt_comes_from_stdin(run: Run, stories: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT))
    code, out, _ = run("generate", stories, "-p", "-", "--dtype", "fp32", "--max-new-tokens", "200")
    assert (code, out) == (0, golden(stories)["greedy_text"] + "\n")


def test_options_reach_the_sampler(run: Run, stories: str) -> None:
    command = ("generate", stories, "-p", PROMPT, "--dtype", "fp32", "--max-new-tokens", "20")
    greedy = run(*command)[1]
    # So hot that a model which is sure of every token draws another one too.
    hot = (*command, "--temperature", "100", "--top-k", "50", "--top-p", "0.9", "--min-p", "0.01")
    assert run(*hot, "--seed", "3")[1] == run(*hot, "--seed", "3")[1] != greedy
    assert run(*command, "--stop", " little")[1] == "Once upon a time, there was a\n"


def test_chat_message_prints_the_answer_alone(run: Run, stories: str) -> None:
    command = ("generate", stories, "-p", "Hello", "--chat", "--max-new-tokens", "5")
    code, out, _ = run(*command, "--system", "Be kind.")
    assert code == 0
    assert "Hello" not in out
    assert out != run(*command)[1]


def test_timings_go_to_stderr(run: Run, stories: str) -> None:
    command = ("generate", stories, "-p", PROMPT, "--dtype", "fp32", "--max-new-tokens", "9")
    _, out, err = run(*command, "--timings")
    assert out == run(*command)[1]
    assert re.fullmatch(
        r"9 tokens; first after \d+ ms \(5 of 5 prompt tokens fed\); then [\d.]+ ms each "
        r"\([\d.]+ tokens/s\); [\d.]+ MB a token, [\d.e+]+ [MG]B/s read; loaded in [\d.]+ s\n",
        err,
    )
