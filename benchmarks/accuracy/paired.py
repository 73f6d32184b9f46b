"""Two models on the same items: statistics of what changed, not of two separate scores.

The error of a score comes mostly from which items were asked, and both models were asked the
same. So half a point, far inside each score's own interval, can be certain from the items alone.
Resampling knows only what was seen, though: six items that no model lost would be certain of a
difference of 0. So of rights and wrongs one lost and one won item are added, as in the intervals of
Agresti and Min (2005), and of other values that never vary there is no interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from benchmarks.rows.kinds import ResultsError

RESAMPLES = 4000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Paired:
    """`after` against `before`, item by item.

    difference: mean of after - before
    low, high: its 95 % bootstrap interval; None where the items do not tell
    lost, won: items that went from 1 to 0 and back; p: McNemar's exact test of these, None when
        items are not rights and wrongs
    """

    count: int
    difference: float
    low: float | None
    high: float | None
    lost: int | None
    won: int | None
    p: float | None


def compare_items(before: Sequence[float], after: Sequence[float]) -> Paired:
    """Raises ResultsError when there are no items, or their numbers differ."""
    if not before or len(before) != len(after):
        raise ResultsError(
            f"the same items are needed of both, got {len(before)} and {len(after)}: measure both "
            "with the same --limit and data"
        )
    differences = np.asarray(after, float) - np.asarray(before, float)
    lost = won = p = None
    seen = differences
    if {*before, *after} <= {0, 1}:
        lost, won = int((differences < 0).sum()), int((differences > 0).sum())
        p = mcnemar(lost, won)
        seen = with_unseen(differences, 1.0)
    low, high = (None, None) if seen.min() == seen.max() else bootstrap_interval(seen)
    return Paired(len(before), float(differences.mean()), low, high, lost, won, p)


def with_unseen(differences: np.ndarray, one: float) -> np.ndarray:
    """Differences of rights and wrongs with an item more that was lost, and one that was won.

    one: what an item counts
    """
    return np.append(differences, (-one, one))


def mcnemar(lost: int, won: int) -> float:
    """The exact test: were lost and won items equally likely, how often would they be at least
    so uneven? Two-sided (McNemar, 1947)."""
    return 1.0 if lost + won == 0 else float(stats.binomtest(lost, lost + won, 0.5).pvalue)


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean, by percentiles of resampled means (Efron, 1979), seeded."""
    data = np.asarray(values, float)
    found = stats.bootstrap(
        (data,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, 4_000_000 // len(data)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927)."""
    found = stats.binomtest(right, count).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)
