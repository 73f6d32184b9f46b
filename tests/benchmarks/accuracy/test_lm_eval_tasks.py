"""Local tasks: the leaderboard's prompts, and no item its own shot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from neuralchat_lite.errors import ConfigError

pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install '.[bench]'")

import lm_eval.tasks
import yaml

from benchmarks.accuracy.lm_eval_tasks import (
    FOLDERS,
    LEADERBOARD,
    TASKS,
    asked_and_shots,
    fingerprint,
    first,
    hellaswag_document,
    hub_tasks,
    local_tasks,
)

from ...conftest import SHARED

SETS = ("made_sets", "evaluation_sets") if SHARED.is_dir() else ("made_sets",)


@pytest.fixture(scope="module", params=SETS)
def data(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def first_row(data: Path, items: str) -> Any:
    return json.loads((data / f"{items}.jsonl").read_text().splitlines()[0])


def requests_of(name: str, data: Path, limit: int) -> list[Any]:
    found = []
    for task in local_tasks(name, data, limit):
        task.build_all_requests(rank=0, world_size=1)
        found += task.instances
    return found


def test_shots_are_those_of_the_harness_own_leaderboard_group() -> None:
    path = Path(lm_eval.tasks.__file__).parent / "benchmarks" / "openllm.yaml"
    group = {task["task"]: task for task in yaml.safe_load(path.read_text())["task"]}
    for name in LEADERBOARD:
        theirs = group[name.removesuffix("_mc2")]
        assert TASKS[name].shots == theirs["num_fewshot"]
        assert TASKS[name].shot_split == theirs.get("fewshot_split")


def test_the_folders_of_the_harness_are_there() -> None:
    root = Path(lm_eval.tasks.__file__).parent
    assert all((root / folder).is_dir() for folder in FOLDERS)


@pytest.mark.parametrize("name", TASKS)
def test_no_item_is_a_shot_of_any(name: str, data: Path) -> None:
    asked, shots = asked_and_shots(TASKS[name], data, None)
    assert asked
    assert not {fingerprint(item) for item in asked} & {fingerprint(shot) for shot in shots}
    assert len(shots) >= TASKS[name].shots


def test_an_item_that_occurs_twice_is_no_shot_either(tmp_path: Path) -> None:
    rows = [{"question": f"q{i % 300}", "choices": ["a", "b"], "answer": 0} for i in range(510)]
    (tmp_path / "arc_challenge_test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked, shots = asked_and_shots(TASKS["arc_challenge"], tmp_path, None)
    assert len(asked) == 310
    assert shots == []  # the last 200 ask what the first 310 ask


@pytest.mark.parametrize("name", TASKS)
def test_each_prompt_has_so_many_shots_and_not_the_item_among_them(name: str, data: Path) -> None:
    separators = {"truthfulqa_mc2": 6, "mmlu": TASKS["mmlu"].shots + 1}
    for instance in requests_of(name, data, 4):
        prompt = instance.args[0]
        assert prompt.count("\n\n") >= separators.get(name, TASKS[name].shots)
        if "question" in instance.doc:
            assert prompt.count(instance.doc["question"].strip()) == 1


def test_arc_is_asked_as_on_the_leaderboard(data: Path) -> None:
    first_four = requests_of("arc_challenge", data, 1)
    row = first_row(data, "arc_challenge_test")
    for instance, choice in zip(first_four, row["choices"], strict=True):
        prompt, continuation = instance.args
        assert prompt.startswith("Question: ")
        assert prompt.endswith(f"\n\nQuestion: {row['question']}\nAnswer:")
        assert continuation == f" {choice}"


def test_mmlu_is_asked_with_the_five_examples_of_its_subject(data: Path) -> None:
    prompt = requests_of("mmlu", data, 1)[0].args[0]
    row = first_row(data, "mmlu_dev")
    a, b, c, d = row["choices"]
    assert prompt.startswith(
        "The following are multiple choice questions (with answers) about "
        f"{row['subject'].replace('_', ' ')}.\n\n"
        f"{row['question']}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\n"
        f"Answer: {'ABCD'[row['answer']]}\n\n"
    )


def test_winogrande_scores_the_end_of_the_sentence_behind_both_names(data: Path) -> None:
    found = [instance.args for instance in requests_of("winogrande", data, 1)]
    row = first_row(data, "winogrande_dev")
    before, after = row["sentence"].split("_")
    assert [prompt.rpartition("\n\n")[2] for prompt, _ in found] == [
        before + row["option1"],
        before + row["option2"],
    ]
    assert {end for _, end in found} == {after}


def test_hellaswag_finds_the_beginning_of_the_ending_again() -> None:
    row = {"endings": list("abcd"), "label": 1}
    found = hellaswag_document(row | {"context": "Disc dog: A man throws. He runs. the dog"})
    assert (found["activity_label"], found["ctx_a"], found["ctx_b"]) == (
        "Disc dog",
        "A man throws. He runs.",
        "the dog",
    )
    whole = hellaswag_document(row | {"context": "Home: How to wash: by hand. Sort it."})
    assert (whole["activity_label"], whole["ctx_a"], whole["ctx_b"]) == (
        "Home",
        "How to wash: by hand. Sort it.",
        "",
    )


def test_hellaswag_capitalizes_it_as_the_harness_does(data: Path) -> None:
    prompts = [instance.args[0] for instance in requests_of("hellaswag", data, 1)]
    sentence, beginning = first_row(data, "hellaswag_val_2000")["context"].split(". ")[-2:]
    assert beginning[0].islower()
    assert prompts[0].endswith(f"{sentence}. {beginning.capitalize()}")


def test_a_limit_takes_the_first_of_each_member_in_turn() -> None:
    items = [{"subject": s, "n": n} for s in "abc" for n in range(3)]
    taken = [(item["subject"], item["n"]) for item in first(items, 4, "subject")]
    assert taken == [("a", 0), ("a", 1), ("b", 0), ("c", 0)]
    assert first(items, None, "subject") == items
    assert first(items, 2, None) == items[:2]


@pytest.mark.parametrize("name", ["arc_challenge", "winogrande"])
def test_a_smaller_limit_asks_the_same_of_the_items_it_asks(name: str, data: Path) -> None:
    few, more = requests_of(name, data, 2), requests_of(name, data, 5)
    assert [i.args for i in few] == [i.args for i in more][: len(few)]


def test_missing_data_say_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gsm8k_test.jsonl cannot be read.*give --data a folder"):
        local_tasks("gsm8k", tmp_path)
    with pytest.raises(ConfigError, match="tinystories_endings is not on the hub"):
        hub_tasks("tinystories_endings")
