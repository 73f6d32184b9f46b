"""One definition of a percentile."""

from __future__ import annotations

import pytest

from benchmarks.rows.samples import Samples, percentile


def test_a_percentile_is_that_of_the_sorted_values():
    assert percentile([float(v) for v in range(101)], 0.99) == 99


def test_between_two_values_a_percentile_is_interpolated_linearly() -> None:
    assert percentile([1.0, 2.0], 0.9) == pytest.approx(1.9)
    assert Samples((3.0, 1.0, 2.0)).percentile(0.25) == pytest.approx(1.5)
