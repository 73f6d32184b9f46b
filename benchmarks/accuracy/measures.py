"""The measures: each asks a model something, and yields rows with the value of every item.

A measure gets a model that `opening.open_variant` opened, so all engines are asked the same. It
leaves out of its rows what all rows of a variant have in common (see `run.measure`).
"""

from __future__ import annotations

import functools
import importlib.util
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import neuralchat_lite as ncl
from benchmarks.accuracy.opening import REFERENCE
from benchmarks.rows.kinds import ResultsError
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.files.digests import digest_of
from neuralchat_lite.generation.prompt import encode_messages

NANO = Path(__file__).parents[2] / "examples" / "nano"
WINDOW = 512  # tokens that running text is scored in, when the model's context holds so many
PROBLEMS = 1000  # that the nano model is asked, without a limit


@dataclass
class Asked:
    """What all measures need to know of a run.

    data: folder of local sets; None takes them from the hub
    texts: folder of running texts
    limit: items of a task, tokens: of a text; None: all
    scratch: a folder for the reference's distributions, kept: those that lie there by text
    open_reference: opens the reference
    """

    data: Path | None
    texts: Path | None
    limit: int | None
    tokens: int | None
    scratch: Path
    open_reference: Callable[[], ncl.Model]
    kept: dict[str, Path] = field(default_factory=dict)


Rows = Iterator[dict[str, Any]]
Measure = Callable[[ncl.Model, str, Asked], Rows]
# A text as (token ids, how many at the beginning are not scored)
Documents = Callable[[ncl.Model, Asked], list[tuple[list[int], int]]]


def scored(items: Sequence[float]) -> dict[str, Any]:
    """Mean, its standard error, and the items. Raises ResultsError for what is not finite."""
    bad = sum(not math.isfinite(value) for value in items)
    if bad or not items:
        raise ResultsError(
            f"{bad} of {len(items)} items have no finite score, at least one was expected and "
            "each finite: the model gives every choice a probability of 0, or there was no item"
        )
    deviation = statistics.stdev(items) if len(items) > 1 else None
    return {
        "value": statistics.fmean(items),
        "stderr": None if deviation is None else deviation / math.sqrt(len(items)),
        "count": len(items),
        "items": list(items),
    }


# ---- tasks of the evaluation harness ----


def leaderboard_task(model: ncl.Model, name: str, asked: Asked) -> Rows:
    import lm_eval

    from benchmarks.accuracy.lm_eval_model import NeuralchatLM
    from benchmarks.accuracy.lm_eval_tasks import TASKS, hub_tasks, local_tasks

    source = TASKS[name]
    local = asked.data is not None
    tasks = hub_tasks(name) if asked.data is None else local_tasks(name, asked.data, asked.limit)
    lm = NeuralchatLM(model)
    found = lm_eval.evaluate(
        lm,
        {"tasks": {task.task_name: task for task in tasks}, "groups": {}},
        limit=None if local else asked.limit,  # local ones are cut already
        bootstrap_iters=0,
    )
    samples = [
        sample
        for task in tasks
        for sample in sorted(found["samples"][task.task_name], key=lambda one: one["doc_id"])
        if sample["filter"] == source.filter
    ]
    yield {
        "metric": source.metric,
        **scored([float(sample[source.metric]) for sample in samples]),
        "shots": source.shots,
        "data_sha256": prompts_digest(samples),
        "conditions": {
            "data": "local" if local else "hub",
            "stands_in": source.stands_in if local else "",
            "filter": source.filter,
            "prompts_cut_to_the_context": lm.cut,
            "tokens_computed": lm.shared.computed,
            "lm_eval": version("lm_eval"),
        },
    }


def prompts_digest(samples: Sequence[dict[str, Any]]) -> str:
    """sha256 of every prompt, choice and target in order. Engines compared must share it."""
    return digest_of([[sample["arguments"], str(sample["target"])] for sample in samples])


# ---- running text ----


def lines_of(file: str) -> Documents:
    """A text as one document, with the tokenizer's special tokens in front, as in training."""

    def documents(model: ncl.Model, asked: Asked) -> list[tuple[list[int], int]]:
        if asked.texts is None:
            raise ConfigError(f"{file} is needed: give --texts with its folder")
        try:
            text = (asked.texts / file).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{asked.texts / file} cannot be read ({error.strerror}): give --texts another "
                "folder, or leave this measure out"
            ) from error
        # No token is made of more than a few hundred characters.
        cut = text if asked.tokens is None else text[: 32 * (asked.tokens + 1)]
        return [(model.tokenizer.encode(cut), 1)]

    return documents


def problem_documents(model: ncl.Model, asked: Asked) -> list[tuple[list[int], int]]:
    """Held-out problems of the nano model with worked answers. Only the answers are scored."""
    documents = []
    for problem in nano_evaluation().held_out_problems(PROBLEMS):
        asking = encode_messages(problem.messages(), model.tokenizer).ids
        answer = model.tokenizer.encode(problem.answer, add_special_tokens=False)
        documents.append(([*asking, *answer], len(asking)))
    return documents


TEXTS: dict[str, Documents] = {
    "tinystories": lines_of("tinystories-valid-head.txt"),
    "wikitext": lines_of("wikitext-2-raw-test.txt"),
    "problems": problem_documents,
}


def windows_of(model: ncl.Model, name: str, asked: Asked) -> Any:
    from benchmarks.accuracy.perplexity import Windows, first_tokens

    documents = TEXTS[name.partition("/")[2]](model, asked)
    context = min(WINDOW, model.decoder.context_length)
    return Windows(first_tokens(documents, asked.tokens), context, context // 2)


def of_windows(windows: Any) -> dict[str, Any]:
    conditions = {"context": windows.context, "stride": windows.stride}
    return {"shots": 0, "data_sha256": windows.sha256, "conditions": conditions}


def perplexity(model: ncl.Model, name: str, asked: Asked) -> Rows:
    """Items are losses in nats; the value is e to the power of their mean."""
    from benchmarks.accuracy.perplexity import negative_log_likelihoods

    windows = windows_of(model, name, asked)
    row = scored([rounded(x) for x in negative_log_likelihoods(model.decoder, windows)])
    value = math.exp(row["value"])
    error = None if row["stderr"] is None else value * row["stderr"]
    yield {"metric": "perplexity", **row, "value": value, "stderr": error, **of_windows(windows)}


def divergence(model: ncl.Model, name: str, asked: Asked) -> Rows:
    from benchmarks.accuracy.divergence import divergence, keep_reference
    from benchmarks.rows.samples import percentile

    windows = windows_of(model, name, asked)
    if name not in asked.kept:
        path = asked.scratch / f"{name.replace('/', '-')}.npy"
        keep_reference(asked.open_reference().decoder, windows, path)
        asked.kept[name] = path
    found = divergence(model.decoder, windows, asked.kept[name])
    common = of_windows(windows)
    common["conditions"]["reference"] = REFERENCE.label
    kl = scored([rounded(value) for value in found.kl])
    p99 = {"value": percentile(found.kl, 0.99), "stderr": None}
    yield {"metric": "kl_mean", **kl, **common}
    yield {"metric": "kl_p99", **kl, **p99, **common}
    yield {"metric": "top1_agreement", **scored(found.same_top), **common}


def rounded(value: float) -> float:
    """Six digits, since thousands of items are stored one by one."""
    return float(f"{value:.6g}")


# ---- the nano model's own arithmetic ----


@functools.cache
def nano_evaluation() -> Any:
    """examples/nano/evaluate.py, a script that imports the modules beside it."""
    # Not under its own name: the evaluation harness has a dependency of that name.
    spec = importlib.util.spec_from_file_location("nano_evaluation", NANO / "evaluate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(NANO))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(NANO))
    return module


def nano(model: ncl.Model, name: str, asked: Asked) -> Rows:
    """The share of held-out problems that a model solves: see examples/nano/evaluate.py."""
    problems = nano_evaluation().held_out_problems(asked.limit or PROBLEMS)
    yield {
        "metric": "exact_match",
        **scored([int(nano_evaluation().solves(model, problem)) for problem in problems]),
        "shots": 0,
        "data_sha256": digest_of([[problem.question, problem.result] for problem in problems]),
        "conditions": {"data": "examples/nano/problems.py"},
    }


MEASURES: dict[str, Measure] = {
    "arc_challenge": leaderboard_task,
    "hellaswag": leaderboard_task,
    "mmlu": leaderboard_task,
    "truthfulqa_mc2": leaderboard_task,
    "winogrande": leaderboard_task,
    "gsm8k": leaderboard_task,
    "tinystories_endings": leaderboard_task,
    "perplexity/tinystories": perplexity,
    "perplexity/wikitext": perplexity,
    "perplexity/problems": perplexity,
    "divergence/tinystories": divergence,
    "divergence/wikitext": divergence,
    "divergence/problems": divergence,
    "nano": nano,
}
