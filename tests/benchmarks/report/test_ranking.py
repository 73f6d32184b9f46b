"""What a report opens with: the fastest setting that loses little, of one model."""

from __future__ import annotations

import pytest

pytest.importorskip("scipy", reason="scipy is not installed: pip install '.[bench]'")

from benchmarks.report import summary
from benchmarks.report.ranking import ranking, standings

BASE = "transformers:bf16"
RIGHT = [1] * 1000


@pytest.fixture
def ranked(accuracy_row, latency_row):
    """variant -> (seconds a token, items lost of 1,000), and the ranking of these."""

    def of(settings, model="m", scored="m"):
        rows = []
        for label, (step, lost) in settings.items():
            engine, variant = label.split(":")
            where = {"engine": engine, "variant": variant}
            rows.append(latency_row([step], model=model, **where))
            rows.append(latency_row([step / 10], model=model, context=512, **where))
            items = [0] * lost + [1] * (1000 - lost)
            rows.append(accuracy_row(items, model=scored, **where))
            rows.append(accuracy_row([0.25, 0.75], model=scored, metric="kl_mean", **where))
        losses = summary.losses(rows, BASE)
        return standings(summary.speeds(rows), losses, rows, BASE)

    return of


def test_the_fastest_that_loses_at_most_a_point_is_first_and_losers_follow_by_loss(ranked):
    found = ranked(
        {"a:bad": (0.01, 90), "a:worse": (0.005, 200), "a:good": (0.02, 9), BASE: (0.2, 0),
         "a:best": (0.04, 0)}
    )  # fmt: skip
    assert [one.label for one in found] == ["a:good", "a:best", BASE, "a:bad", "a:worse"]
    opened = ranking(found, BASE)
    assert opened.sentence.startswith(
        f"Use a:good: m decodes 50 tokens/s, 10 times as many as {BASE}, and scores 0.9 (0."
    )
    assert [(*row[:3], *row[4:]) for row in opened.table.rows[:2]] == [
        ("1", "a:good", "50.0", "0.5", "10.00 ×"),
        ("2", "a:best", "25.0", "0.5", "5.00 ×"),
    ]
    assert opened.table.rows[2][3] == "the baseline"


def test_speeds_have_no_power_of_ten(ranked):
    found = ranked({"a:good": (0.0003, 0), BASE: (0.2, 0)})
    assert " 3,333 tokens/s" in ranking(found, BASE).sentence


def test_where_all_others_lose_more_the_baseline_is_what_to_use(ranked):
    found = ranked({"a:bad": (0.01, 90), BASE: (0.2, 0)})
    assert ranking(found, BASE).sentence == (
        f"Use {BASE}: m decodes 5 tokens/s, and every faster setting loses more than 1 point."
    )


@pytest.mark.parametrize("scored", ["m", "another"])
def test_speed_of_one_model_and_scores_of_another_say_nothing(ranked, scored):
    opened = ranking(ranked({"a:good": (0.02, 0), BASE: (0.2, 0)}, scored=scored), BASE)
    assert (opened.table is None) == (scored != "m")
    assert opened.sentence.startswith("Use " if scored == "m" else "These results do not say")
