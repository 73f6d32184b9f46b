"""The tables of a report: numbers as texts, and how each engine ran when they were taken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmarks.accuracy.paired import wilson
from benchmarks.report import summary
from benchmarks.report.compare import label
from benchmarks.rows.results import Row

# Of a row's conditions, what belongs to one measurement, or is told in a place of its own.
NOT_HOW = ("versions", "environment", "flags", "own", "new_tokens", "pages_in_memory", "per")


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


def speed_table(
    speeds: Sequence[summary.Speed], bandwidth: float | None, rows: Iterable[Row]
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
                f"{one.step.quantile(0.9) * 1000:.2f}",
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


def scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value / scale


def median(samples: summary.Samples | None) -> float | None:
    return None if samples is None else samples.median


def told(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


# ---- how each ran ----


def flags_of(row: Row) -> str:
    """What an engine was told, or chose, because of this CPU."""
    conditions = row["conditions"]
    found = [f"isa={conditions['isa']}"] if "isa" in conditions else []
    return "; ".join(found + [f"{name}: {v}" for name, v in conditions.get("flags", {}).items()])


def flags_by_label(rows: Iterable[Row]) -> dict[str, str]:
    return {label(row): flags for row in rows if (flags := flags_of(row))}


def how_table(rows: Iterable[Row]) -> Table:
    """The conditions of every variant, as it told them when it had loaded."""
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


def score_table(rows: Sequence[Row], model: str) -> Table:
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
