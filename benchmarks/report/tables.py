"""The tables of a report: formatted numbers, and how each engine ran when they were measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmarks.accuracy.lm_eval_tasks import LEADERBOARD
from benchmarks.accuracy.paired import wilson
from benchmarks.report import summary
from benchmarks.report.cells import median, scaled, told
from benchmarks.rows.kinds import AccuracyRow, LatencyRow, Measurement, label

# Conditions of a single measurement, or shown in another place.
NOT_HOW = ("versions", "environment", "flags", "own", "new_tokens", "pages_in_memory", "per")


@dataclass(frozen=True)
class Table:
    """texts: the columns that hold text, not numbers"""

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


def speed_table(
    speeds: Sequence[summary.Speed], bandwidth: float | None, rows: Iterable[LatencyRow]
) -> Table:
    """rows: of the same model, for the flags"""
    heads = (
        *("engine:variant", "batch", "context", "tokens/s", "ms p50", "ms p90", "steps"),
        *("first token s", "prefill tokens/s", "GB/step", "of the roofline", "flags"),
    )
    flags = flags_by_label(rows)
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
                f"{one.step.percentile(0.9) * 1000:.2f}",
                str(len(one.step.values)),
                told(median(one.first_token), 3),
                told(median(one.prefill), 1),
                told(scaled(one.bytes_per_step, 1e9), 3),
                told(one.roofline_share(bandwidth), 2),
                flags.get(one.label, ""),
            )
            for one in ordered
        ],
        texts=(0, len(heads) - 1),
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


# ---- how each ran ----


def flags_of(row: Measurement) -> str:
    """Settings that an engine was given, or chose, because of this CPU."""
    conditions = row["conditions"]
    found = [f"isa={conditions['isa']}"] if "isa" in conditions else []
    return "; ".join(found + [f"{name}: {v}" for name, v in conditions.get("flags", {}).items()])


def flags_by_label(rows: Iterable[Measurement]) -> dict[str, str]:
    return {label(row): flags for row in rows if (flags := flags_of(row))}


def how_table(rows: Iterable[LatencyRow]) -> Table:
    """The conditions of every variant, as its engine reported them after loading."""
    last = {label(row): row["conditions"] for row in rows if row["context"] is None}
    heads = ("engine:variant", "versions", "how it ran")
    lines = [
        (
            name,
            ", ".join(f"{package} {v}" for package, v in conditions.get("versions", {}).items()),
            ", ".join(f"{key}={v}" for key, v in conditions.items() if key not in NOT_HOW),
        )
        for name, conditions in last.items()
    ]
    return Table(heads, [line for line in lines if any(line[1:])], texts=(0, 1, 2))


def score_table(rows: Sequence[AccuracyRow], model: str) -> Table:
    """A row for each variant, a column for each task; the published scores first, if there are."""
    columns = list(dict.fromkeys((row["task"], row["metric"], row["shots"]) for row in rows))
    heads = [f"{task} {metric} ({shots} shots)" for task, metric, shots in columns]
    flags = flags_by_label(rows)
    lines: list[tuple[str, ...]] = []
    if (known := summary.published(model)) is not None:
        cells = [told(known.get(task), 2) for task, *_ in columns]
        lines.append(("published", *mean_of_six(known, columns), *cells, ""))
    for name in dict.fromkeys(map(label, rows)):
        own = {(r["task"], r["metric"], r["shots"]): r for r in rows if label(r) == name}
        values = {task: 100 * row["value"] for (task, *_), row in own.items()}
        mean = mean_of_six(values, columns)
        cells = [score(own.get(column)) for column in columns]
        lines.append((name, *mean, *cells, flags.get(name, "")))
    every = ("engine:variant", *mean_of_six(None, columns), *heads, "flags")
    return Table(every, lines, texts=(0, len(every) - 1))


def mean_of_six(
    scores: Mapping[str, float] | None, columns: Iterable[tuple[str, str, int]]
) -> tuple[str, ...]:
    """A cell with the leaderboard's average (its head without scores), where all of its tasks are
    among the columns; else no cell."""
    if not set(LEADERBOARD) <= {task for task, *_ in columns}:
        return ()
    if scores is None:
        return ("mean of the six",)
    if not set(LEADERBOARD) <= set(scores):
        return ("",)
    return (f"{fmean(scores[task] for task in LEADERBOARD):.2f}",)


def conditions_table(rows: Sequence[AccuracyRow]) -> Table:
    """What was asked in each task, and what replaces data that were not available."""
    heads = ("task", "items", "shots", "prompts cut to the context", "stands in, or window")
    lines = []
    for row in rows:
        conditions = row["conditions"]
        window = f"windows of {conditions['context']}" if "context" in conditions else ""
        cut = conditions.get("prompts_cut_to_the_context", "")
        what = conditions.get("stands_in") or window
        lines.append((row["task"], str(row["count"]), str(row["shots"]), str(cut), what))
    return Table(heads, list(dict.fromkeys(lines)), texts=(0, 4))


def score(row: AccuracyRow | None) -> str:
    """A score in percent, with Wilson's interval where items are right or wrong."""
    if row is None:
        return ""
    if row["metric"] not in summary.POINTS:
        return f"{row['value']:.4g}"
    if set(row["items"]) <= {0, 1}:
        low, high = wilson(int(sum(row["items"])), row["count"])
        return f"{100 * row['value']:.2f} ({100 * low:.1f} to {100 * high:.1f})"
    return f"{100 * row['value']:.2f} ± {196 * (row['stderr'] or 0):.1f}"
