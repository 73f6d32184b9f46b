"""The examples run as they stand, and the little model calculates."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import neuralchat_lite as ncl
from neuralchat_lite.checkpoints.tokenizer import load_tokenizer

from .patience import patience

EXAMPLES = Path(__file__).parents[1] / "examples"
NANO = EXAMPLES / "nano" / "model"
CARD = "calculate 100 + 520 + 60"
# Steps of training in a second: they are the same steps.
BRIEF = ("--batch", 4, "--log-every", 1, "--judge-every", 2, "--judged", 4)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return os.environ | {"NEURALCHAT_LITE_CACHE": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="module")
def train() -> Iterator[Callable[..., str]]:
    """train(*arguments) -> what examples/nano/train.py prints: in this process and with one thread,
    where torch adds in the same order every time."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES / "nano")
        module = importlib.import_module("train")

        def call(*arguments: Any) -> str:
            patch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                module.main()
            return out.getvalue()

        torch.set_num_threads(1)
        yield call
        torch.set_num_threads(threads)


def run(environment: dict[str, str], script: str, *arguments: Any, stdin: str = "") -> str:
    command = [sys.executable, EXAMPLES / script, *map(str, arguments)]
    done = subprocess.run(
        command,
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=patience(300),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_examples_are_short() -> None:
    for script in EXAMPLES.glob("*.py"):
        assert len(script.read_text(encoding="utf-8").splitlines()) <= 40, script


def test_quickstart_answers_the_cards_own_question(environment: dict[str, str]) -> None:
    out = run(environment, "quickstart.py")
    assert "100 + 520 = 620" in out and "620 + 60 = 680" in out
    assert "finished by eos" in out


def test_stream_chat_keeps_earlier_turns_in_its_cache(environment: dict[str, str]) -> None:
    out = run(environment, "stream_chat.py", stdin="What is 12 + 30?\nWhat is 50 - 8?\n\n")
    assert out.count("Answer: 42") == 2
    first, second = (line for line in out.splitlines() if "were in the cache" in line)
    assert first.startswith("(0 of ") and not second.startswith("(0 of ")


def test_batch_answers_every_line(environment: dict[str, str], tmp_path: Path) -> None:
    questions = tmp_path / "questions.txt"
    questions.write_text("What is 2 + 3?\n\nMultiply 12 by 3.\n")
    answers = [json.loads(line) for line in run(environment, "batch.py", questions).splitlines()]
    assert [a["answer"].split()[-1] for a in answers] == ["5", "36"]


def test_the_little_model_solves_held_out_problems(environment: dict[str, str]) -> None:
    out = run(environment, "nano/evaluate.py", "--problems", "30")
    rows = [line.split("|")[1:-1] for line in out.splitlines() if line.startswith("| ")][1:]
    assert [row[0].strip() for row in rows] == [
        "bf16",
        "int8 g32",
        "int8 g128",
        "int4 g32",
        "int4 g128",
    ]
    for row in rows:
        assert float(row[2].strip(" %")) >= 80, row


def losses(folder: Path) -> list[tuple[float, int, float | None]]:
    entries = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [(e["loss"], e["tokens"], e.get("exact_match")) for e in entries]


def test_training_gives_the_same_losses_in_another_process(
    environment: dict[str, str], train: Callable[..., str], tmp_path: Path
) -> None:
    one = tmp_path / "one"
    run(environment | {"OMP_NUM_THREADS": "1"}, "nano/train.py", "--out", one, "--steps", 3, *BRIEF)
    train("--out", tmp_path / "other", "--steps", 3, *BRIEF)
    assert losses(one) == losses(tmp_path / "other")
    assert len(losses(one)) == 3
    assert (one / "curve.png").stat().st_size > 5000
    assert ncl.load(one / "model", dtype="fp32").generate(CARD, max_new_tokens=2)


def test_training_goes_on_where_it_was_interrupted(
    train: Callable[..., str], tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train("--out", whole, "--steps", 4, *BRIEF)
    train("--out", parts, "--steps", 4, "--stop-at", 2, *BRIEF)
    assert "going on at step 2" in train("--out", parts, "--steps", 4, *BRIEF)
    assert losses(whole) == losses(parts)
    assert len(losses(whole)) == 4


def test_the_tokenizer_keeps_every_text_and_splits_digits() -> None:
    tokenizer = load_tokenizer(NANO)
    for text in ("What is 12 + 30?\n", "Grüße, 世界 🙂", " two  spaces ", "a\tb"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("520", add_special_tokens=False)]
    assert pieces == ["5", "2", "0"]


def test_the_template_of_the_model_is_neural_chats() -> None:
    from neuralchat_lite.generation.prompt import encode_prompt

    tokenizer: Any = load_tokenizer(NANO)
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": CARD},
        {"role": "assistant", "content": "Answer: 680"},
        {"role": "user", "content": "And 1 + 1?"},
    ]
    own = encode_prompt(messages, tokenizer, 1 << 20).ids
    tokenizer.chat_template = None
    assert encode_prompt(messages, tokenizer, 1 << 20).ids == own


def test_held_out_operands_never_occur_in_training() -> None:
    sys.path.insert(0, str(EXAMPLES / "nano"))
    try:
        import random
        import re

        from problems import held_out_problems, is_held_out, make_problem
    finally:
        sys.path.pop(0)
    rng = random.Random("0 0")
    for _ in range(20000):
        problem = make_problem(rng, held_out=False)
        operands = list(map(int, re.findall(r"\d+", problem.question)))
        assert not any(map(is_held_out, operands)), problem
    for problem in held_out_problems():
        operands = list(map(int, re.findall(r"\d+", problem.question)))
        assert all(is_held_out(n) or n < 10 for n in operands), problem
        assert sum(map(is_held_out, operands)) >= 1
