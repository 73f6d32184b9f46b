"""The first lines of a report: which setting to use, at what speed, at what loss.

Speed and loss are of one model, or there is no answer. A setting fits when it scores at most
`ALLOWED` points below the baseline, in the mean of the tasks that both were asked. Of those that
fit, the fastest comes first; the others follow, least lost first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.report.summary import Loss, Speed
from benchmarks.report.tables import Table
from benchmarks.rows.kinds import Measurement, label

ALLOWED = 1.0  # points


@dataclass(frozen=True)
class Standing:
    """One setting of a model.

    ratio: of its tokens/s to the baseline's, where that was timed
    loss: of its scores; its own is 0
    kl: mean divergence from the fp32 weights in nats, where it was measured
    """

    label: str
    tokens_per_s: float
    ratio: float | None
    loss: Loss
    kl: float | None

    @property
    def fits(self) -> bool:
        return self.loss.points <= ALLOWED

    @property
    def lost(self) -> str:
        """Points, and their 95 % interval."""
        points, half = self.loss.points, 1.96 * self.loss.error
        return f"{points:.1f} ({points - half:.1f} to {points + half:.1f})"


@dataclass(frozen=True)
class Ranking:
    """sentence: what to use; note: by what rule, and what was measured"""

    sentence: str
    table: Table | None
    note: str


def standings(
    speeds: Iterable[Speed], losses: Iterable[Loss], merged: Iterable[Measurement], baseline: str
) -> list[Standing]:
    """The settings of that model of which most were both timed and scored, in their order."""
    lost = {(one.model, one.label): one for one in losses}
    alone = [one for one in speeds if one.batch == 1]
    shortest = {one.model: one.context for one in sorted(alone, key=lambda one: -one.context)}
    rates = {
        (one.model, one.label): one.tokens_per_s
        for one in alone
        if one.context == shortest[one.model] and (one.model, one.label) in lost
    }
    settings = {model: [place for place in rates if place[0] == model] for model, _ in rates}
    both = max(settings.values(), key=len, default=[])
    kls: dict[tuple[str, str], float] = {}
    for row in merged:
        if row["kind"] == "accuracy" and row["metric"] == "kl_mean":
            kls.setdefault((row["model"], label(row)), row["value"])
    found = [
        Standing(
            place[1],
            rates[place],
            rates[place] / rates[place[0], baseline] if (place[0], baseline) in rates else None,
            lost[place],
            kls.get(place),
        )
        for place in both
    ]
    by_speed = sorted((one for one in found if one.fits), key=lambda one: -one.tokens_per_s)
    by_loss = sorted((one for one in found if not one.fits), key=lambda one: one.loss.points)
    return by_speed + by_loss


def ranking(found: Sequence[Standing], baseline: str | None) -> Ranking:
    """What a report opens with. found: of `standings`"""
    if baseline is None or all(one.label == baseline for one in found):
        return Ranking(
            "These results do not say which setting to use: no model has both times and scores of "
            "two settings.",
            None,
            "`python -m benchmarks latency --model MODEL` and `python -m benchmarks accuracy "
            "MODEL` measure both.",
        )
    first = found[0]
    tasks = ", ".join(dict.fromkeys(task for one in found for task in one.loss.tasks))
    note = (
        f"The fastest setting that scores at most {ALLOWED:g} point below {baseline} comes first, "
        f"then those that lose more. Tokens/s: one sequence, the shortest prompt, of "
        f"{first.loss.model} on this machine. Points: mean of {tasks}, with the 95 % interval of "
        "the difference on the same items; below 0 is a gain. KL: mean divergence from the fp32 "
        f"weights, in nats. Speed: beside {baseline}."
    )
    return Ranking(sentence(first, baseline), ranked_table(found, baseline), note)


def sentence(first: Standing, baseline: str) -> str:
    """first: of the ranking"""
    model, rate = first.loss.model, f"{rounded(first.tokens_per_s)} tokens/s"
    limit = f"loses more than {ALLOWED:g} point"
    if first.label == baseline:
        return f"Use {baseline}: {model} decodes {rate}, and every faster setting {limit}."
    if not first.fits:
        return f"Use {baseline}: for {model}, every setting that was timed and scored {limit}."
    times = "" if first.ratio is None else f", {first.ratio:.2g} times as many as {baseline}"
    return (
        f"Use {first.label}: {model} decodes {rate}{times}, and scores {first.lost} points below "
        f"{baseline}."
    )


def rounded(value: float) -> str:
    """Three digits, and no power of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ranked_table(found: Sequence[Standing], baseline: str) -> Table:
    heads = ("", "setting", "tokens/s", "points lost", "KL", "speed")
    rows: list[tuple[str, ...]] = [
        (
            str(place),
            one.label,
            f"{one.tokens_per_s:.1f}",
            "the baseline" if one.label == baseline else one.lost,
            "" if one.kl is None else f"{one.kl:.2g}",
            "" if one.ratio is None else f"{one.ratio:.2f} ×",
        )
        for place, one in enumerate(found, 1)
    ]
    return Table(heads, rows, texts=(1,))
