"""The examples run as they stand, and the little model calculates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import neuralchat_lite as ncl

EXAMPLES = Path(__file__).parents[1] / "examples"
NANO = EXAMPLES / "nano" / "model"
CARD = "calculate 100 + 520 + 60"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return os.environ | {"NEURALCHAT_LITE_CACHE": str(tmp_path_factory.mktemp("cache"))}


def run(environment: dict[str, str], script: str, *arguments: Any, stdin: str = "") -> str:
    command = [sys.executable, EXAMPLES / script, *map(str, arguments)]
    done = subprocess.run(
        command, env=environment, input=stdin, capture_output=True, text=True, timeout=300
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
    out = run(environment, "nano/evaluate.py", "--problems", "60")
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


def test_training_gives_the_same_losses_twice(environment: dict[str, str], tmp_path: Path) -> None:
    logs = []
    for name in ("a", "b"):
        run(
            environment | {"OMP_NUM_THREADS": "1"},
            "nano/train.py",
            *("--out", tmp_path / name, "--steps", 3, "--log-every", 1, "--judged", 8),
        )
        entries = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        logs.append([(e["loss"], e["tokens"], e.get("exact_match")) for e in entries])
        assert (tmp_path / name / "curve.png").stat().st_size > 5000
        assert ncl.load(tmp_path / name / "model", dtype="fp32").generate(CARD, max_new_tokens=2)
    assert logs[0] == logs[1]
    assert len(logs[0]) == 3


def test_training_goes_on_where_it_was_interrupted(
    environment: dict[str, str], tmp_path: Path
) -> None:
    one = environment | {"OMP_NUM_THREADS": "1"}
    more = ("--log-every", 1, "--judge-every", 2, "--judged", 4)
    run(one, "nano/train.py", "--out", tmp_path / "whole", "--steps", 4, *more)
    run(one, "nano/train.py", "--out", tmp_path / "parts", "--steps", 4, "--stop-at", 2, *more)
    out = run(one, "nano/train.py", "--out", tmp_path / "parts", "--steps", 4, *more)
    assert "going on at step 2" in out
    losses = [
        [
            json.loads(line)["loss"]
            for line in (tmp_path / name / "log.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1]


def test_the_tokenizer_keeps_every_text_and_splits_digits() -> None:
    tokenizer = ncl.api.load_tokenizer(NANO)
    for text in ("What is 12 + 30?\n", "Grüße, 世界 🙂", " two  spaces ", "a\tb"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("520", add_special_tokens=False)]
    assert pieces == ["5", "2", "0"]


def test_the_template_of_the_model_is_neural_chats() -> None:
    from neuralchat_lite.generation.prompt import encode_prompt

    tokenizer: Any = ncl.api.load_tokenizer(NANO)
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
