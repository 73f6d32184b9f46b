"""Paired statistics against enumeration and formulas."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

pytest.importorskip("scipy", reason="scipy is not installed: pip install '.[bench]'")

from benchmarks.accuracy.paired import bootstrap_interval, compare_items, mcnemar, wilson
from benchmarks.rows.kinds import ResultsError


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (7, 2), (2, 7), (5, 5), (10, 0)])
def test_mcnemar_is_the_share_of_all_coin_tosses_that_are_as_uneven(lost, won):
    tosses = list(itertools.product((0, 1), repeat=lost + won))
    uneven = [t for t in tosses if abs(2 * sum(t) - len(t)) >= abs(lost - won)]
    assert mcnemar(lost, won) == pytest.approx(len(uneven) / len(tosses))


@pytest.mark.parametrize(("right", "count"), [(0, 10), (3, 10), (97, 100), (955, 1000)])
def test_wilson_is_its_formula(right, count):
    z = 1.959964
    share = right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    low, high = wilson(right, count)
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=1e-6)


def test_the_bootstrap_of_many_normal_values_is_the_normal_interval():
    values = np.random.default_rng(3).normal(0.5, 2.0, 3000)
    low, high = bootstrap_interval(values)
    error = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - error, abs=0.08 * error)
    assert high == pytest.approx(values.mean() + error, abs=0.08 * error)
    assert (low, high) == bootstrap_interval(values), "seeded"


def test_rights_and_wrongs_are_counted_both_ways():
    found = compare_items([1, 1, 1, 0, 0, 1], [1, 0, 0, 1, 0, 1])
    assert (found.count, found.lost, found.won) == (6, 2, 1)
    assert found.difference == pytest.approx(-1 / 6)
    assert found.p == 1.0
    assert found.low < found.difference < found.high


def test_shares_of_probability_have_an_interval_but_no_flips():
    found = compare_items([0.5, 0.25, 0.75], [0.5, 0.5, 0.5])
    assert (found.lost, found.won, found.p) == (None, None, None)
    assert found.difference == 0


def test_six_equal_items_are_not_certain_and_a_thousand_nearly_are():
    few, many = compare_items([1, 0] * 3, [1, 0] * 3), compare_items([1, 0] * 500, [1, 0] * 500)
    assert few.difference == many.difference == 0
    assert few.p == many.p == 1
    assert few.low <= -0.2 and few.high >= 0.2
    # A flip that 1,000 items do not show has a share below 1 - 0.025 ** (1 / 1000).
    assert -0.004 < many.low < -0.001 and 0.001 < many.high < 0.004


def test_six_lost_items_say_that_some_are_lost_but_not_that_all_are():
    found = compare_items([1] * 6, [0] * 6)
    assert found.difference == found.low == -1
    assert -0.5 < found.high < 0


def test_values_that_never_vary_have_no_interval():
    found = compare_items([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])
    assert (found.difference, found.low, found.high) == (-0.25, None, None)


def test_other_items_are_refused():
    with pytest.raises(ResultsError, match="got 2 and 3"):
        compare_items([1, 0], [1, 0, 1])
    with pytest.raises(ResultsError, match="got 0 and 0"):
        compare_items([], [])
