"""Comparing: only like with like."""

from __future__ import annotations

import pytest

pytest.importorskip("scipy", reason="scipy is not installed: pip install '.[bench]'")

from benchmarks.report.compare import accuracy_table, compare, latency_table
from benchmarks.rows.kinds import ResultsError
from benchmarks.rows.merge import merge_rounds

REFERENCE = {"engine": "transformers", "variant": "bf16"}


def test_scores_are_compared_item_by_item(accuracy_row):
    rows = [accuracy_row([1, 1, 0, 1], **REFERENCE), accuracy_row([1, 0, 1, 0])]
    (found,) = compare(rows)
    assert found.subject == ("tiny", "gsm8k", "acc")
    assert (found.before, found.after) == (0.75, 0.5)
    assert (found.paired.lost, found.paired.won) == (2, 1)
    (line,) = list(accuracy_table([found]))[2:]
    assert "| neuralchat_lite:int4-bf16 | 0.75 | 0.5 | -0.25 |" in line
    assert "| -2 +1 | 1 |" in line


@pytest.mark.parametrize("name", ["model_sha256", "data_sha256", "shots"])
def test_scores_of_other_models_data_or_shots_are_refused(accuracy_row, name):
    other = 0 if name == "shots" else "another"
    rows = [accuracy_row(**REFERENCE), accuracy_row(**{name: other})]
    with pytest.raises(ResultsError, match=f"cannot be compared, they differ in {name}"):
        compare(rows)


@pytest.mark.parametrize("name", ["shape_sha256", "prompt_sha256", "threads", "unit"])
def test_times_of_other_shapes_prompts_or_threads_are_refused(latency_row, name):
    other = 4 if name == "threads" else "another"
    rows = [latency_row([1.0], **REFERENCE), latency_row([1.0], **{name: other})]
    with pytest.raises(ResultsError, match=f"cannot be compared, they differ in {name}"):
        compare(rows)


def test_fewer_items_are_refused(accuracy_row):
    with pytest.raises(ResultsError, match="differ in count: 4 and 3"):
        compare([accuracy_row(**REFERENCE), accuracy_row([1, 0, 1])])


def test_rounds_are_put_together_before_the_median_is_taken(latency_row):
    rows = [
        latency_row([3.0, 5.0], **REFERENCE),
        latency_row([1.0], round=0),
        latency_row([4.0, 9.0], round=1, **REFERENCE),
        latency_row([3.0], round=1),
    ]
    (found,) = compare(rows)
    assert (found.before, found.after) == (4.5, 2.0)
    assert "| 4.5 | 2 | 0.444 |" in list(latency_table([found]))[-1]


def test_rounds_with_other_prompts_are_not_put_together(latency_row):
    with pytest.raises(ResultsError, match="they differ in prompt_sha256"):
        merge_rounds([latency_row([1.0]), latency_row([1.0], round=1, prompt_sha256="q")])


def test_other_batches_and_tasks_are_other_subjects(accuracy_row, latency_row):
    rows = [
        accuracy_row(**REFERENCE),
        accuracy_row(task="nano"),
        latency_row([1.0], **REFERENCE),
        latency_row([1.0], batch=4),
    ]
    assert compare(rows) == []


def test_a_percentile_has_no_paired_interval(accuracy_row):
    rows = [accuracy_row(metric="kl_p99", **REFERENCE), accuracy_row(metric="kl_p99")]
    (found,) = compare(rows)
    assert found.paired is None


def test_an_unknown_baseline_lists_what_there_is(accuracy_row):
    with pytest.raises(ResultsError, match=r"'ipex:bf16'.*choose one of neuralchat_lite:int4-bf16"):
        compare([accuracy_row()], "ipex:bf16")
