"""The six tasks of the Open LLM Leaderboard, from the hub or from local JSON lines.

Prompts, choices and filters are those of the evaluation harness in both cases: a local task is
the harness' own task with its data replaced. Local sets are what their makers published as test
or validation sets, mostly without a training set, so shots come from a part of the set that is
then not asked (`held_back`). No item is ever its own shot.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuralchat_lite.errors import ConfigError, HubError

Document = dict[str, Any]
HELD_BACK = 200  # items at the end of a set, when shots must come from it
SHOT_SEED = 1234  # the harness' own, so that shots are those of its command line
LETTERS = "ABCDE"
LEADERBOARD = ("arc_challenge", "hellaswag", "mmlu", "truthfulqa_mc2", "winogrande", "gsm8k")


@dataclass(frozen=True)
class TaskSource:
    """One task: how the leaderboard asks it, and the local files of its data.

    shots: examples in front of each item; metric, filter: the harness' names for the score
    items, shot_items: file names; shots come from the end of `items` when shot_items is None
    to_document: a local row as the harness' own data set has it
    harness: the harness' name of the task, or of the group whose members `member` names
    shot_split: where shots come from on the hub
    config: a whole task, for one that the harness does not have
    """

    shots: int
    metric: str
    items: str
    to_document: Callable[[Document], Document]
    harness: str
    shot_items: str | None = None
    filter: str = "none"
    shot_split: str | None = None
    member: str | None = None
    stands_in: str = ""
    config: Document | None = None


def arc_document(row: Document) -> Document:
    labels = list(LETTERS[: len(row["choices"])])
    return {
        "question": row["question"],
        "choices": {"text": row["choices"], "label": labels},
        "answerKey": labels[row["answer"]],
    }


def hellaswag_document(row: Document) -> Document:
    """The set was published with activity, context and the beginning of the ending in one text.

    The harness puts them together again, with that beginning (`ctx_b`) capitalized. It is what
    follows the last sentence, where that starts with a small letter and has no full stop.
    """
    activity, _, context = row["context"].partition(": ")
    found = re.fullmatch(r"(.*[.!?]\"?) ([a-z][^.!?]*)", context, re.DOTALL)
    before, beginning = found.groups() if found else (context, "")
    return {
        "activity_label": activity,
        "ctx_a": before,
        "ctx_b": beginning,
        "endings": row["endings"],
        "label": str(row["label"]),
    }


def truthfulqa_document(row: Document) -> Document:
    right, wrong = row["correct_answers"], row["incorrect_answers"]
    targets = {"choices": [*right, *wrong], "labels": [1] * len(right) + [0] * len(wrong)}
    return {"question": row["question"], "mc1_targets": targets, "mc2_targets": targets}


def winogrande_document(row: Document) -> Document:
    names = ("sentence", "option1", "option2")
    return {**{name: row[name] for name in names}, "answer": str(row["answer"])}


def gsm8k_document(row: Document) -> Document:
    return {"question": row["question"], "answer": row["answer"]}


def mmlu_document(row: Document) -> Document:
    return {name: row[name] for name in ("subject", "question", "choices", "answer")}


def endings_document(row: Document) -> Document:
    return {name: row[name] for name in ("context", "choices", "answer")}


def held_back(what: str) -> str:
    return f"shots come from the last {HELD_BACK} items of the {what} set, which are not asked"


TASKS: dict[str, TaskSource] = {
    "arc_challenge": TaskSource(
        shots=25,
        metric="acc_norm",
        harness="arc_challenge",
        items="arc_challenge_test.jsonl",
        to_document=arc_document,
        shot_split="train",
        stands_in=held_back("test"),
    ),
    "hellaswag": TaskSource(
        shots=10,
        metric="acc_norm",
        harness="hellaswag",
        items="hellaswag_val_2000.jsonl",
        to_document=hellaswag_document,
        shot_split="train",
        stands_in=held_back("validation"),
    ),
    "mmlu": TaskSource(
        shots=5,
        metric="acc",
        harness="mmlu",
        member="subject",
        items="mmlu_test_25_per_subject.jsonl",
        shot_items="mmlu_dev.jsonl",
        to_document=mmlu_document,
    ),
    "truthfulqa_mc2": TaskSource(
        shots=0,
        metric="acc",
        harness="truthfulqa_mc2",
        items="truthfulqa.jsonl",
        to_document=truthfulqa_document,
    ),
    "winogrande": TaskSource(
        shots=5,
        metric="acc",
        harness="winogrande",
        items="winogrande_dev.jsonl",
        to_document=winogrande_document,
        shot_split="train",
        stands_in=held_back("validation"),
    ),
    "gsm8k": TaskSource(
        shots=5,
        metric="exact_match",
        filter="strict-match",
        harness="gsm8k",
        items="gsm8k_test.jsonl",
        shot_items="gsm8k_train_first_200.jsonl",
        to_document=gsm8k_document,
        stands_in="shots come from the first 200 items of the training set",
    ),
    # Not of the leaderboard: children's stories, which the little story models do know.
    "tinystories_endings": TaskSource(
        shots=0,
        metric="acc_norm",
        harness="tinystories_endings",
        items="tinystories_endings_500.jsonl",
        to_document=endings_document,
        config={
            "output_type": "multiple_choice",
            "doc_to_text": "{{context}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "metric_list": [
                {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}
            ],
        },
    ),
}
FOLDERS = ("arc", "hellaswag", "mmlu/default", "truthfulqa", "winogrande", "gsm8k")  # lm_eval's


def read_items(path: Path) -> list[Document]:
    """The rows of a JSON lines file. Raises ConfigError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read as JSON lines ({error}): give --data a folder that holds it, "
            "or leave --data out to take the task from the hub"
        ) from error


def asked_and_shots(
    source: TaskSource, data: Path, limit: int | None
) -> tuple[list[Document], list[Document]]:
    """The items to ask and those that may be shots, with no text in both.

    limit: items to ask; of a task with members, about as many of each
    """
    items = [source.to_document(row) for row in read_items(data / source.items)]
    if source.shot_items is not None:
        shots = [source.to_document(row) for row in read_items(data / source.shot_items)]
    elif source.shots:
        items, shots = items[:-HELD_BACK], items[-HELD_BACK:]
    else:
        shots = []
    asked = {fingerprint(item) for item in items}
    shots = [shot for shot in shots if fingerprint(shot) not in asked]
    return first(items, limit, source.member), shots


def fingerprint(document: Document) -> str:
    """Equal for documents with the same question, whatever their choices."""
    texts = (document.get(name) for name in ("question", "sentence", "ctx_a", "context"))
    return json.dumps([*texts, document.get("ctx_b"), document.get("subject")])


def first(items: Sequence[Document], limit: int | None, member: str | None) -> list[Document]:
    """The first `limit` items; of a task with members the first of each, in turn."""
    if limit is None or limit >= len(items):
        return list(items)
    if member is None:
        return list(items[:limit])
    place: dict[str, int] = defaultdict(int)
    ranked = []
    for index, item in enumerate(items):
        ranked.append((place[item[member]], index))
        place[item[member]] += 1
    return [items[index] for _, index in sorted(sorted(ranked)[:limit], key=lambda pair: pair[1])]


def local_tasks(name: str, data: Path, limit: int | None = None) -> list[Any]:
    """The harness' tasks for a name of TASKS, over local data; several for one with members."""
    source = TASKS[name]
    asked, shots = asked_and_shots(source, data, limit)
    if source.member is None:
        return [harness_task(source, source.harness, asked, shots)]
    members = dict.fromkeys(item[source.member] for item in asked)
    return [
        harness_task(
            source,
            f"{source.harness}_{member}",
            [item for item in asked if item[source.member] == member],
            [shot for shot in shots if shot[source.member] == member],
        )
        for member in members
    ]


def harness_task(
    source: TaskSource, task: str, asked: list[Document], shots: list[Document]
) -> Any:
    import datasets

    splits = {"test": asked, "shots": shots}
    data = datasets.DatasetDict(
        {split: datasets.Dataset.from_list(rows) for split, rows in splits.items() if rows}
    )
    config = {
        **(source.config or {}),
        "task": task,
        "custom_dataset": lambda **_: data,
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": "shots" if source.shots else None,
        "num_fewshot": source.shots,
    }
    if source.config is not None:
        from lm_eval.api.task import ConfigurableTask

        built: Any = ConfigurableTask(config=config)
    else:
        built = from_harness(config)[0]
    built.set_fewshot_seed(SHOT_SEED)
    return built


def hub_tasks(name: str) -> list[Any]:
    """The harness' tasks over the hub's data, asked as its `openllm` group asks them.

    Raises HubError when the data cannot be loaded.
    """
    source = TASKS[name]
    if source.config is not None:
        raise ConfigError(f"{name} is not on the hub: give --data with the folder of its file")
    spec: Document = {"task": source.harness, "num_fewshot": source.shots}
    if source.shot_split is not None:
        spec["fewshot_split"] = source.shot_split
    try:
        tasks = from_harness(spec)
    # The data sets' library raises whatever its transport raises.
    except Exception as error:
        raise HubError(
            f"the data of {name} could not be loaded from the hub ({error!r:.200}): check the "
            "connection, or give --data with a folder of local sets"
        ) from error
    for task in tasks:
        task.set_fewshot_seed(SHOT_SEED)
    return tasks


def from_harness(changed: Document) -> list[Any]:
    """The harness' own task, or the members of its group, with some of its settings changed."""
    # Alone, a dictionary would be a whole task; as a member of a group it changes a known one.
    group = {"group": f"changed {changed['task']}", "task": [changed]}
    return list(manager().load([group])["tasks"].values())


_managers: list[Any] = []


def manager() -> Any:
    """The harness' index of our tasks, made once. Reading all of its tasks would take seconds."""
    if not _managers:
        import lm_eval.tasks

        root = Path(lm_eval.tasks.__file__).parent
        paths = [str(root / folder) for folder in FOLDERS]
        _managers.append(lm_eval.tasks.TaskManager(include_path=paths, include_defaults=False))
    return _managers[0]
