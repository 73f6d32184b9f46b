"""A run as one picture of where everybody stands: raw samples, a Markdown table, one HTML page.

python -m benchmarks report RUN.jsonl [MORE.jsonl] -o FOLDER

results.jsonl has every row of every file; report.md and report.html tell the same numbers. The
page needs nothing from elsewhere. A number without its conditions is none, so both begin with
machine, versions and commit, and say when the machine was busy.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer

from benchmarks import results, summary
from benchmarks.compare import compare, label, merge_rounds, paired_cells
from benchmarks.paired import wilson
from benchmarks.results import ResultsError, Row

TEMPLATE = Path(__file__).with_name("report.html.jinja")
TITLE = "Quantized inference on a CPU, measured"


@dataclass(frozen=True)
class Table:
    """texts: the columns that are no numbers"""

    heads: tuple[str, ...]
    rows: list[tuple[str, ...]]
    texts: tuple[int, ...] = (0,)

    def markdown(self) -> Iterator[str]:
        yield f"| {' | '.join(self.heads)} |"
        yield (
            "|"
            + "|".join("---" if i in self.texts else "---:" for i in range(len(self.heads)))
            + "|"
        )
        for row in self.rows:
            yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"


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
    opening: list[str]
    warnings: list[str]
    sections: list[Section]

    def markdown(self) -> str:
        lines = [f"# {TITLE}", ""]
        for paragraph in [*self.opening, *(f"**{warning}**" for warning in self.warnings)]:
            lines += [paragraph, ""]
        for section in (one for one in self.sections if one.tables):
            lines += [f"## {section.title}", ""]
            lines += [section.note, ""] if section.note else []
            for table in section.tables:
                lines += [*table.markdown(), ""]
        return "\n".join(lines)

    def html(self) -> str:
        import jinja2

        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
        return template.render(
            title=TITLE,
            opening=self.opening,
            warnings=self.warnings,
            sections=self.sections,
        )


def build(rows: Sequence[Row], asked_baseline: str | None = None) -> Report:
    """Everything that the rows tell. Raises ResultsError when there is no measurement."""
    from benchmarks.plots import Styles

    measured = [row for row in rows if row["kind"] in ("latency", "accuracy")]
    if not measured:
        raise ResultsError(
            "no measurement is among the results: run `python -m benchmarks latency` or "
            "`python -m benchmarks accuracy` first"
        )
    styles = Styles([label(row) for row in measured])
    baseline = summary.baseline_of(rows, asked_baseline)
    probes = summary.bandwidth(rows)
    speeds = summary.speeds(rows)
    losses = [] if baseline is None else summary.losses(rows, baseline)
    sections = [tradeoff(speeds, losses, styles, baseline)]
    for model in dict.fromkeys(one.model for one in speeds):
        sections.append(
            latency([one for one in speeds if one.model == model], rows, model, styles, probes)
        )
    for model in dict.fromkeys(row["model"] for row in rows if row["kind"] == "accuracy"):
        sections.append(accuracy(rows, model, styles, baseline))
    sections.append(failures(rows))
    filled = [section for section in sections if section.pictures or section.tables]
    return Report(opening(rows, probes), warnings(rows, probes), filled)


# ---- the beginning ----


def opening(rows: Sequence[Row], probes: summary.Samples | None) -> list[str]:
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
    if any(row.get("engine") == "neuralchat_lite" for row in rows):
        told.append('In pictures "ncl" is neuralchat_lite.')
    return told


def unique_runs(rows: Iterable[Row]) -> list[Row]:
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


def warnings(rows: Sequence[Row], probes: summary.Samples | None) -> list[str]:
    """What speaks against the measurements of time."""
    from benchmarks.machine import busy_warnings

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
    """Speed of one model's shape against loss of another's scores, each pair a picture."""
    from benchmarks.plots import pareto

    section = Section("Speed against accuracy")
    for model in dict.fromkeys(one.model for one in speeds):
        own = [one for one in speeds if one.model == model and one.batch == 1]
        if not own or baseline is None:
            continue
        context = min(one.context for one in own)
        own = [one for one in own if one.context == context]
        for judged in dict.fromkeys(one.model for one in losses):
            lost = [one for one in losses if one.model == judged]
            svg = pareto(own, lost, styles, baseline)
            if svg:
                tasks = ", ".join(lost[0].tasks)
                note = f"Tokens/s of {model} at {context} tokens; accuracy of {judged} on {tasks}."
                section.pictures.append(Picture("What a lost point buys", note, svg))
    return section


def latency(
    speeds: Sequence[summary.Speed],
    rows: Sequence[Row],
    model: str,
    styles: Any,
    probes: summary.Samples | None,
) -> Section:
    from benchmarks.plots import bars, memory, over_context

    section = Section(
        f"Speed: {model}",
        "Medians of all rounds; p90 is the slowest tenth of steps. The roofline is the measured "
        "bandwidth over the bytes that a step reads.",
    )
    single = [one for one in speeds if one.batch == 1]
    footprints = [one for one in summary.footprints(rows) if one.model == model]
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
    section.tables = [speed_table(speeds, bandwidth), footprint_table(footprints)]
    section.tables = [table for table in section.tables if table.rows]
    return section


def speed_table(speeds: Sequence[summary.Speed], bandwidth: float | None) -> Table:
    heads = (
        *("engine:variant", "batch", "context", "tokens/s", "ms p50", "ms p90", "steps"),
        *("first token s", "prefill tokens/s", "GB/step", "of the roofline"),
    )
    ordered = sorted(speeds, key=lambda one: (one.batch, one.context, -one.tokens_per_s))
    return Table(
        heads,
        [
            (
                one.label,
                str(one.batch),
                str(one.context),
                f"{one.tokens_per_s:.2f}",
                f"{one.step.median * 1000:.2f}",
                f"{one.step.quantile(0.9) * 1000:.2f}",
                str(len(one.step.values)),
                told(median(one.first_token), 3),
                told(median(one.prefill), 1),
                told(scaled(one.bytes_per_step, 1e9), 3),
                told(one.roofline_share(bandwidth), 2),
            )
            for one in ordered
        ],
    )


def footprint_table(found: Sequence[summary.Footprint]) -> Table:
    columns = (
        ("load cold s", "load_cold_s", 1),
        ("load warm s", "load_warm_s", 1),
        ("peak GB", "peak_rss_bytes", 1e9),
        ("private GB", "private_bytes", 1e9),
        ("disk GB", "disk_bytes", 1e9),
    )
    rows = [
        (one.label, *(told(scaled(one.value(metric), scale), 2) for _, metric, scale in columns))
        for one in found
    ]
    return Table(("engine:variant", *(head for head, *_ in columns)), rows)


def scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value / scale


def median(samples: summary.Samples | None) -> float | None:
    return None if samples is None else samples.median


def told(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def accuracy(rows: Sequence[Row], model: str, styles: Any, baseline: str | None) -> Section:
    from benchmarks.plots import differences

    own = [row for row in merge_rounds(rows) if row["kind"] == "accuracy" and row["model"] == model]
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
        (one.subject[1], one.variant, *(100 * v for v in (p.difference, p.low, p.high)))
        for one in found
        if (p := one.paired) is not None and one.subject[2] in summary.POINTS
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


def score_table(rows: Sequence[Row], model: str) -> Table:
    """A row for each variant, a column for each task; the published scores first, if there are."""
    columns = list(dict.fromkeys((row["task"], row["metric"], row["shots"]) for row in rows))
    heads = [f"{task} {metric} ({shots} shots)" for task, metric, shots in columns]
    lines: list[tuple[str, ...]] = []
    if (known := summary.published(model)) is not None:
        cells = [told(known.get(task), 2) for task, *_ in columns]
        lines.append(("published", *mean_of_six(known, columns), *cells))
    for name in dict.fromkeys(map(label, rows)):
        own = {(r["task"], r["metric"], r["shots"]): r for r in rows if label(r) == name}
        values = {task: 100 * row["value"] for (task, *_), row in own.items()}
        mean = mean_of_six(values, columns)
        lines.append((name, *mean, *(score(own.get(column)) for column in columns)))
    return Table(("engine:variant", *mean_of_six(None, columns), *heads), lines)


def mean_of_six(
    scores: Mapping[str, float] | None, columns: Iterable[tuple[str, str, int]]
) -> tuple[str, ...]:
    """A cell with the leaderboard's average (its head without scores), where all of its tasks are
    among the columns; else no cell."""
    if not set(summary.LEADERBOARD) <= {task for task, *_ in columns}:
        return ()
    if scores is None:
        return ("mean of the six",)
    if not set(summary.LEADERBOARD) <= set(scores):
        return ("",)
    return (f"{fmean(scores[task] for task in summary.LEADERBOARD):.2f}",)


def conditions_table(rows: Sequence[Row]) -> Table:
    """What was asked in each task, and what stands in for data that were not there."""
    heads = ("task", "items", "shots", "prompts cut to the context", "stands in, or window")
    lines = []
    for row in rows:
        conditions = row["conditions"]
        window = f"windows of {conditions['context']}" if "context" in conditions else ""
        cut = conditions.get("prompts_cut_to_the_context", "")
        what = conditions.get("stands_in") or window
        lines.append((row["task"], str(row["count"]), str(row["shots"]), str(cut), what))
    return Table(heads, list(dict.fromkeys(lines)), texts=(0, 4))


def score(row: Row | None) -> str:
    """A score in percent, with Wilson's interval where it counts rights."""
    if row is None:
        return ""
    if row["metric"] not in summary.POINTS:
        return f"{row['value']:.4g}"
    if set(row["items"]) <= {0, 1}:
        low, high = wilson(int(sum(row["items"])), row["count"])
        return f"{100 * row['value']:.2f} ({100 * low:.1f} to {100 * high:.1f})"
    return f"{100 * row['value']:.2f} ± {196 * (row['stderr'] or 0):.1f}"


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


def report_command(
    files: Annotated[list[Path], typer.Argument(help="results files")],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder to write")],
    baseline: Annotated[str | None, typer.Option(help="engine:variant of reference")] = None,
) -> None:
    """Write results.jsonl, report.md and report.html."""
    rows = [row for file in files for row in results.read(file)]
    report = build(rows, baseline)
    output.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    files_written = {
        "results.jsonl": "".join(f"{line}\n" for line in lines),
        "report.md": report.markdown(),
        "report.html": report.html(),
    }
    for name, text in files_written.items():
        (output / name).write_text(text, encoding="utf-8")
        print(output / name)
