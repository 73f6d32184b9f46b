"""The report of a run: Markdown and an HTML page with the same numbers.

The page needs no other file. Both begin with what to use (ranking.py), warn when the machine was
busy, and end with machine, versions and commit: a number means little without its conditions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import summary
from benchmarks.report.compare import compare, paired_cells
from benchmarks.report.ranking import Ranking, ranking, standings
from benchmarks.report.tables import (
    Table,
    conditions_table,
    footprint_table,
    how_table,
    score_table,
    speed_table,
)
from benchmarks.rows.kinds import AccuracyRow, ResultsError, Row, RunRow, label
from benchmarks.rows.merge import merge_rounds
from benchmarks.rows.samples import Samples

TEMPLATE = Path(__file__).with_name("page.html.jinja")
TITLE = "Quantized inference on a CPU, measured"
CONDITIONS = "Machine, versions and commit"


@dataclass(frozen=True)
class Picture:
    title: str
    note: str
    svg: str


@dataclass
class Section:
    title: str
    note: str = ""
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


@dataclass
class Report:
    ranking: Ranking
    warnings: list[str]
    sections: list[Section]
    conditions: list[str]

    def markdown(self) -> str:
        lines = [f"# {TITLE}", "", self.ranking.sentence, ""]
        if self.ranking.table is not None:
            lines += [*self.ranking.table.markdown(), ""]
        for paragraph in [self.ranking.note, *(f"**{warning}**" for warning in self.warnings)]:
            lines += [paragraph, ""]
        for section in (one for one in self.sections if one.tables):
            lines += [f"## {section.title}", ""]
            lines += [section.note, ""] if section.note else []
            for table in section.tables:
                lines += [*table.markdown(), ""]
        lines += [f"## {CONDITIONS}", ""]
        for paragraph in self.conditions:
            lines += [paragraph, ""]
        return "\n".join(lines)

    def html(self) -> str:
        import jinja2

        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
        return template.render(
            title=TITLE,
            ranking=self.ranking,
            warnings=self.warnings,
            sections=self.sections,
            conditions_title=CONDITIONS,
            conditions=self.conditions,
        )


def build(rows: Sequence[Row], asked_baseline: str | None = None) -> Report:
    """The report of all rows. Raises ResultsError when no measurement is among them."""
    from benchmarks.report.plots import Styles

    measured = merge_rounds(rows)
    if not measured:
        raise ResultsError(
            "no measurement is among the results: run `python -m benchmarks latency` or "
            "`python -m benchmarks accuracy` first"
        )
    styles = Styles([label(row) for row in measured])
    baseline = summary.baseline_of(rows, asked_baseline)
    probes = summary.bandwidth(rows)
    speeds = summary.speeds(measured)
    footprints = summary.footprints(measured)
    losses = [] if baseline is None else summary.losses(measured, baseline)
    sections = [tradeoff(speeds, losses, styles, baseline)]
    for model in dict.fromkeys(one.model for one in speeds):
        own = [one for one in speeds if one.model == model]
        held = [one for one in footprints if one.model == model]
        sections.append(latency(own, held, rows, model, styles, probes))
    scores = [row for row in measured if row["kind"] == "accuracy"]
    for model in dict.fromkeys(row["model"] for row in scores):
        asked = [row for row in scores if row["model"] == model]
        sections.append(accuracy(asked, model, styles, baseline))
    sections.append(failures(rows))
    filled = [section for section in sections if section.pictures or section.tables]
    for section in [one for one in filled if one.pictures][:1]:
        section.note = f'In pictures "ncl" is neuralchat_lite. {section.note}'.rstrip()
    ranked = standings(speeds, losses, measured, baseline or "")
    return Report(
        ranking(ranked, baseline), warnings(rows, probes), filled, conditions(rows, probes)
    )


# ---- the conditions ----


def conditions(rows: Sequence[Row], probes: Samples | None) -> list[str]:
    told = []
    for row in unique_runs(rows):
        versions = ", ".join(f"{name} {value}" for name, value in row["versions"].items())
        machine = ", ".join(f"{name} {told_value(v)}" for name, v in row["machine"].items() if v)
        commit = f", commit {row['commit'][:12]}" if row["commit"] else ""
        told.append(f"{row['time'][:16].replace('T', ' ')}{commit}. {machine}. {versions}.")
    if probes is not None:
        told.append(
            f"Memory bandwidth: {probes.median / 1e9:.1f} GB/s, median of {len(probes.values)} "
            f"probes between the measurements ({min(probes.values) / 1e9:.1f} to "
            f"{max(probes.values) / 1e9:.1f})."
        )
    return told


def unique_runs(rows: Iterable[Row]) -> list[RunRow]:
    """One run row of each machine, versions and commit: a resumed run has several."""
    runs = [row for row in rows if row["kind"] == "run"]
    same = {json.dumps([r["machine"].get("cpu"), r["versions"], r["commit"]]): r for r in runs}
    return list(same.values())


def told_value(value: Any) -> str:
    if isinstance(value, int) and value >= 10**9:
        return f"{value / 1e9:.1f}e9"
    if isinstance(value, list):
        return " ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in value)
    return str(value)


def warnings(rows: Sequence[Row], probes: Samples | None) -> list[str]:
    """Reasons to doubt the measured times."""
    from benchmarks.latency.machine import busy_warnings

    if probes is None:
        return []
    steal = max(row.get("steal_share", 0.0) for row in rows if row["kind"] == "probe")
    before = [run["machine"] for run in unique_runs(rows)]
    load = max((machine.get("load_average", [0.0])[0] for machine in before), default=0.0)
    cpus = max((machine.get("logical_cpus") or 1 for machine in before), default=1)
    found = busy_warnings(probes.values, steal, load, cpus)
    return [f"{text[0].upper()}{text[1:]}." for text in found]


# ---- sections ----


def tradeoff(
    speeds: Sequence[summary.Speed],
    losses: Sequence[summary.Loss],
    styles: Any,
    baseline: str | None,
) -> Section:
    """Speed against lost scores, a picture for each model that has both."""
    from benchmarks.report.plots import pareto

    section = Section("Speed against accuracy")
    for model in dict.fromkeys(one.model for one in speeds):
        own = [one for one in speeds if one.model == model and one.batch == 1]
        lost = [one for one in losses if one.model == model]
        if not own or not lost or baseline is None:
            continue
        context = min(one.context for one in own)
        own = [one for one in own if one.context == context]
        svg = pareto(own, lost, styles, baseline)
        if svg:
            tasks = ", ".join(lost[0].tasks)
            note = f"{model}: tokens/s at {context} tokens, accuracy on {tasks}."
            section.pictures.append(Picture("What a lost point buys", note, svg))
    return section


def latency(
    speeds: Sequence[summary.Speed],
    footprints: Sequence[summary.Footprint],
    rows: Sequence[Row],
    model: str,
    styles: Any,
    probes: Samples | None,
) -> Section:
    from benchmarks.report.plots import bars, memory, over_context

    section = Section(
        f"Speed: {model}",
        "Medians of all rounds; nine of ten steps are faster than p90, interpolated linearly. The "
        "roofline is the measured bandwidth over the bytes that a step reads.",
    )
    single = [one for one in speeds if one.batch == 1]
    bandwidth = None if probes is None else probes.median
    if single:
        context = min(one.context for one in single)
        shares = [
            (one.label, share, None)
            for one in single
            if one.context == context and (share := one.roofline_share(bandwidth)) is not None
        ]
        drawn = [
            ("Time per token", "Strokes: 10 % to 90 % of steps. Both axes are logarithmic.",
             over_context(single, styles, "step", "ms")),
            ("Share of the roofline", f"Batch 1, {context} tokens; 1 is all of the bandwidth.",
             bars(shares, styles, "of the measured bandwidth", line=1.0)),
            ("Time to the first token", "Both axes are logarithmic.",
             over_context(single, styles, "first_token", "s")),
            ("Memory", "", memory(footprints, styles)),
        ]  # fmt: skip
        section.pictures = [Picture(title, note, svg) for title, note, svg in drawn if svg]
    own = [row for row in rows if row["kind"] == "latency" and row["model"] == model]
    section.tables = [
        speed_table(speeds, bandwidth, own),
        footprint_table(footprints),
        how_table(own),
    ]
    section.tables = [table for table in section.tables if table.rows]
    return section


def accuracy(own: Sequence[AccuracyRow], model: str, styles: Any, baseline: str | None) -> Section:
    from benchmarks.report.plots import differences

    section = Section(
        f"Accuracy: {model}",
        "Every variant was asked the same items with the same prompts. Differences from "
        f"{baseline or 'a baseline'} are of the same items, with 95 % bootstrap intervals; flips "
        "count the items lost and won, p is McNemar's exact test of them. Of a perplexity the "
        "difference is that of the mean loss, in nats.",
    )
    section.tables += [score_table(own, model), conditions_table(own)]
    if baseline is None or not any(label(row) == baseline for row in own):
        return section
    order = list(dict.fromkeys((row["task"], row["metric"]) for row in own))
    found = sorted(compare(own, baseline), key=lambda one: order.index(one.subject[1:]))
    drawn = [
        (one.subject[1], one.variant, 100 * p.difference, 100 * p.low, 100 * p.high)
        for one in found
        if (p := one.paired) is not None and one.subject[2] in summary.POINTS
        if p.low is not None and p.high is not None
    ]
    svg = differences(drawn, styles, f"points above {baseline}")
    if svg:
        note = "What lies across the line may be chance."
        section.pictures.append(Picture("Change of the scores", note, svg))
    heads = ("task", "metric", "engine:variant", "baseline", "value", "difference", "95 %")
    section.tables.append(
        Table(
            (*heads, "flips", "p"),
            [
                (
                    *map(str, one.subject[1:]),
                    one.variant,
                    f"{one.before:.4g}",
                    f"{one.after:.4g}",
                    *paired_cells(one.paired),
                )
                for one in found
            ],
            texts=(0, 1, 2),
        )
    )
    return section


def failures(rows: Sequence[Row]) -> Section:
    """What could not be measured, unless a later try could."""
    heads = ("engine:variant", "model", "stage", "reason")
    lines = [
        (label(row), row["model"], row["stage"], row["reason"])
        for row in rows
        if row["kind"] == "failure"
    ]
    tables = [Table(heads, list(dict.fromkeys(lines)), texts=(0, 1, 2, 3))] if lines else []
    return Section("What could not be measured", tables=tables)
