"""Evaluation sets in the form of the published ones, with sums and with the made model's story.

Prompts and scores depend on the fields of a row and not on what it asks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..made_model import CHAPTERS

Row = dict[str, Any]
SUBJECTS = ("elementary_mathematics", "abstract_algebra", "college_mathematics")


def question(number: int) -> str:
    return f"What is {number} + {number + 1}?"


def choices(number: int) -> list[str]:
    return [str(2 * number + 1 + off) for off in range(4)]


def arc(number: int) -> Row:
    return {"question": question(number), "choices": choices(number), "answer": 0}


def hellaswag(number: int) -> Row:
    context = f"Counting: A man counts {number} birds. He looks again. the man"
    endings = [f"counts {count} more." for count in choices(number)]
    return {"context": context, "endings": endings, "label": number % 4}


def mmlu(number: int) -> Row:
    return {"subject": SUBJECTS[number % len(SUBJECTS)], **arc(number)}


def truthfulqa(number: int) -> Row:
    right, *wrong = choices(number)
    return {"question": question(number), "correct_answers": [right], "incorrect_answers": wrong}


def winogrande(number: int) -> Row:
    sentence = f"Anna has {number} books more than Tom so _ has to buy a shelf."
    return {"sentence": sentence, "option1": "Anna", "option2": "Tom", "answer": 1 + number % 2}


def gsm8k(number: int) -> Row:
    total = 2 * number + 1
    answer = f"It is <<{number}+{number + 1}={total}>>{total}.\n#### {total}"
    return {"question": question(number), "answer": answer}


def endings(number: int) -> Row:
    """The beginning of a chapter, its next sentence, and the last ones of the other chapters."""
    sentences = [chapter.split(". ") for chapter in CHAPTERS]
    own = sentences.pop(number % len(CHAPTERS))
    length = 1 + number // len(CHAPTERS)
    found = [other[-1].removesuffix(".") + "." for other in sentences]
    answer = number % 4
    found.insert(answer, own[length].removesuffix(".") + ".")
    context = ". ".join(own[:length]) + "."
    return {"context": context, "choices": found, "answer": answer}


# Name of the file: what makes a row, and of which numbers. The last 200 of some are shots.
SETS: dict[str, tuple[Callable[[int], Row], range]] = {
    "arc_challenge_test": (arc, range(230)),
    "hellaswag_val_2000": (hellaswag, range(230)),
    "mmlu_test_25_per_subject": (mmlu, range(99, 129)),
    "mmlu_dev": (mmlu, range(15)),
    "truthfulqa": (truthfulqa, range(30)),
    "winogrande_dev": (winogrande, range(230)),
    "gsm8k_test": (gsm8k, range(100, 130)),
    "gsm8k_train_first_200": (gsm8k, range(30)),
    "tinystories_endings_500": (endings, range(8)),
}


def write_sets(folder: Path) -> None:
    for name, (make, numbers) in SETS.items():
        lines = "".join(json.dumps(make(number)) + "\n" for number in numbers)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
