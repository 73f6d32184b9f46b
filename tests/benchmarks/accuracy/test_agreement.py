"""Our log-likelihoods are those of the harness' own backend on the same weights."""

from __future__ import annotations

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install '.[bench]'")
pytest.importorskip("accelerate", reason="accelerate is not installed: pip install '.[bench]'")

from benchmarks.accuracy.agreement import backends, compare_task, difference, same

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def both(nano, tmp_path_factory):
    return backends(str(nano), tmp_path_factory.mktemp("agreement"))


@pytest.mark.parametrize("task", ["winogrande", "mmlu", "gsm8k"])
def test_both_backends_agree_on_every_item(both, evaluation_sets, task):
    found = compare_task(task, evaluation_sets, 3, *both)
    assert found.items == 3
    assert found.requests == {"winogrande": 6, "mmlu": 12, "gsm8k": 3}[task]
    assert found.largest <= 1e-3
    assert found.ours == found.theirs
    assert found.holds


def test_tied_weights_are_written_apart_since_the_head_has_codes_of_its_own(
    stories, evaluation_sets, tmp_path
):
    both = backends(str(stories), tmp_path)
    found = compare_task("tinystories_endings", evaluation_sets, 3, *both)
    assert found.holds


def test_other_answers_do_not_agree():
    assert difference((-1.0, True), (-1.0, False)) == float("inf")
    assert difference((-1.0, True), (-1.5, True)) == 0.5
    assert difference("42", " 42 ") == 0 and difference("42", "43") == 1
    assert same(1.0, 1.0) and not same(1.0, 0.0)
    assert same(0.3, 0.3005) and not same(0.3, 0.302)
    assert same(float("nan"), float("nan")) and not same(float("nan"), 0.5)
