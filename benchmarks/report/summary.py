"""The numbers that the report and the terminal show: medians of all rounds, and what follows.

roofline = bandwidth / bytes per token        share = (bytes / median time) / median bandwidth

Nothing is averaged over models: a report shows each by itself. `merged` are rows whose rounds are
one row each: see `rows.merge.merge_rounds`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.accuracy.paired import with_unseen
from benchmarks.rows.kinds import AccuracyRow, Measurement, ResultsError, Row, label
from benchmarks.rows.samples import Samples

BASELINES = ("transformers:bf16", "neuralchat_lite:bf16", "neuralchat_lite:fp32")
# Scores whose loss is given in percentage points. Perplexity and divergence have none.
POINTS = {"acc", "acc_norm", "exact_match"}

# What Intel published for the model (Open LLM Leaderboard, first version), in percent.
PUBLISHED: dict[str, dict[str, float]] = {
    "neural-chat-7b-v3-2": {
        "arc_challenge": 67.49,
        "hellaswag": 83.92,
        "mmlu": 63.55,
        "truthfulqa_mc2": 59.68,
        "winogrande": 79.95,
        "gsm8k": 55.12,
    }
}


@dataclass(frozen=True)
class Speed:
    """One variant at one batch and context. step: seconds of a token of each sequence."""

    label: str
    model: str
    batch: int
    context: int
    step: Samples
    first_token: Samples | None
    prefill: Samples | None
    bytes_per_step: float | None

    @property
    def tokens_per_s(self) -> float:
        return self.batch / self.step.median

    def roofline_share(self, bandwidth: float | None) -> float | None:
        """(bytes per step / median time) / bandwidth in bytes/s; None where one is unknown."""
        if self.bytes_per_step is None or bandwidth is None:
            return None
        return self.bytes_per_step / self.step.median / bandwidth


@dataclass(frozen=True)
class Footprint:
    """One variant's memory, files and loading, as far as they are known."""

    label: str
    model: str
    metrics: Mapping[str, Samples]

    def value(self, metric: str) -> float | None:
        found = self.metrics.get(metric)
        return None if found is None else found.median


@dataclass(frozen=True)
class Loss:
    """Percentage points that a variant scores below the baseline: the mean of the common tasks.

    error: standard error of that mean, from the differences of the items
    """

    label: str
    model: str
    points: float
    error: float
    tasks: tuple[str, ...]


def speeds(merged: Iterable[Measurement]) -> list[Speed]:
    """Of the latency rows with batch and context, in their order."""
    table: dict[tuple[str, str, int, int], dict[str, Samples]] = {}
    for row in merged:
        if row["kind"] != "latency" or not row["samples"]:
            continue
        if row["batch"] is not None and row["context"] is not None:
            place = (label(row), row["model"], row["batch"], row["context"])
            table.setdefault(place, {})[row["metric"]] = Samples(tuple(row["samples"]))
    found = []
    for place, metrics in table.items():
        if (step := metrics.get("time_per_token_s")) is None:
            continue
        size = metrics.get("bytes_per_token")
        more = (metrics.get("first_token_s"), metrics.get("prefill_tokens_per_s"))
        found.append(Speed(*place, step, *more, None if size is None else size.median))
    return found


def footprints(merged: Iterable[Measurement]) -> list[Footprint]:
    table: dict[tuple[str, str], dict[str, Samples]] = {}
    for row in merged:
        if row["kind"] == "latency" and row["context"] is None and row["samples"]:
            samples = Samples(tuple(row["samples"]))
            table.setdefault((label(row), row["model"]), {})[row["metric"]] = samples
    return [Footprint(*place, metrics) for place, metrics in table.items()]


def bandwidth(rows: Iterable[Row]) -> Samples | None:
    """The probes between the measurements, in bytes/s."""
    probes = [row["bandwidth_bytes_per_s"] for row in rows if row["kind"] == "probe"]
    return Samples(tuple(probes)) if probes else None


def baseline_of(rows: Iterable[Row], asked: str | None = None) -> str | None:
    """The baseline of scores: the one asked for, else the first of BASELINES that has scores.

    Raises ResultsError when what was asked for has no scores.
    """
    there = {label(row) for row in rows if row["kind"] == "accuracy"}
    if asked is not None and there and asked not in there:
        raise ResultsError(
            f"the baseline {asked!r} has no scores: choose one of {', '.join(sorted(there))}"
        )
    choices = BASELINES if asked is None else (asked,)
    return next((name for name in choices if name in there), None)


def losses(merged: Iterable[Measurement], baseline: str) -> list[Loss]:
    """The loss of every variant that shares a task with the baseline, whose own loss is 0."""
    scores: dict[tuple[str, str], dict[str, AccuracyRow]] = {}
    for row in merged:
        if row["kind"] == "accuracy" and row["metric"] in POINTS:
            scores.setdefault((row["model"], label(row)), {})[row["task"]] = row
    found = []
    for (model, name), tasks in scores.items():
        before = scores.get((model, baseline), {})
        common = tuple(task for task in tasks if task in before)
        if not common:
            continue
        differences = [
            np.subtract(before[task]["items"], tasks[task]["items"]) * 100 for task in common
        ]
        points = float(np.mean([d.mean() for d in differences]))
        binary = [{*before[task]["items"], *tasks[task]["items"]} <= {0, 1} for task in common]
        seen = [with_unseen(d, 100.0) if b else d for d, b in zip(differences, binary, strict=True)]
        variances = [d.var(ddof=1) / len(d) if len(d) > 1 else 0.0 for d in seen]
        error = 0.0 if name == baseline else math.sqrt(sum(variances)) / len(common)
        found.append(Loss(name, model, points, error, common))
    return found


def published(model: str) -> dict[str, float] | None:
    """The published scores of a model, by its name without the owner."""
    return PUBLISHED.get(model.rpartition("/")[2])
