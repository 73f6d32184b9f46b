"""The kinds of rows and the fields that each must have: the one place that knows them.

A row is a JSON object, so it is a dictionary here too. Fields beside the required ones are
allowed: they are more conditions.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypedDict, Union, cast, get_args, get_origin, get_type_hints

from neuralchat_lite.errors import NeuralchatError


class ResultsError(NeuralchatError, ValueError):
    """A results file, or a row of one, breaks the schema, or cannot answer what was asked."""


class RunRow(TypedDict):
    """Where and how a run was made: its first row."""

    kind: Literal["run"]
    run_id: str
    time: str
    machine: dict[str, Any]
    versions: dict[str, str]
    commit: str | None
    arguments: dict[str, Any]


class ProbeConditions(TypedDict, total=False):
    steal_share: float  # of the CPU time since the run began
    load_average: float


class ProbeRow(ProbeConditions):
    """The memory bandwidth, measured between two turns."""

    kind: Literal["probe"]
    bandwidth_bytes_per_s: float
    threads: int
    time: str


class LatencyRow(TypedDict):
    """The samples of one metric, of one variant in one round.

    prompt_sha256, batch, context: None where nothing is prompted (loading, disk, memory)
    """

    kind: Literal["latency"]
    engine: str
    variant: str
    model: str
    shape_sha256: str
    prompt_sha256: str | None
    threads: int
    metric: str
    batch: int | None
    context: int | None
    unit: str
    samples: list[float]
    round: int | None
    conditions: dict[str, Any]


class AccuracyRow(TypedDict):
    """One score of one variant, with the value of every item."""

    kind: Literal["accuracy"]
    engine: str
    variant: str
    model: str
    model_sha256: str
    task: str
    metric: str
    value: float
    stderr: float | None
    count: int
    items: list[float]
    data_sha256: str
    shots: int
    conditions: dict[str, Any]


class KernelRow(TypedDict):
    """Products of one kind, one number of rows and one set of kernels. Samples with one index were
    taken in the same round.

    outputs, columns: of the matrix; weight_bytes: that one product reads
    copies: matrices in turn, so that no product finds its weights in a cache
    samples: seconds a product; peaks: operations a second of the instruction in registers alone;
    bandwidths: bytes a second that the machine reads
    """

    kind: Literal["kernel"]
    isa: str
    weights: str
    compute: str
    instruction: str
    instruction_set: str
    rows: int
    outputs: int
    columns: int
    group_size: int
    weight_bytes: int
    copies: int
    threads: int
    samples: list[float]
    peaks: list[float]
    bandwidths: list[float]


class FailureRow(TypedDict):
    """What could not be measured, and why."""

    kind: Literal["failure"]
    engine: str
    variant: str
    model: str
    stage: str
    reason: str
    last_lines: list[str]


Row = RunRow | ProbeRow | LatencyRow | AccuracyRow | KernelRow | FailureRow
Measurement = LatencyRow | AccuracyRow
KINDS: dict[str, type] = {
    "run": RunRow,
    "probe": ProbeRow,
    "latency": LatencyRow,
    "accuracy": AccuracyRow,
    "kernel": KernelRow,
    "failure": FailureRow,
}

# The fields by which two rows are the same measurement. A run that goes on with a file skips what
# the file has; failures are tried again.
KEYS: dict[str, tuple[str, ...]] = {
    "latency": (
        *("engine", "variant", "model", "shape_sha256", "prompt_sha256", "threads"),
        *("metric", "batch", "context", "round"),
    ),
    "accuracy": ("engine", "variant", "model_sha256", "task", "metric", "shots", "limit"),
}

METRICS = {
    "load_cold_s": "s",
    "load_warm_s": "s",
    "first_token_s": "s",
    "prefill_tokens_per_s": "tokens/s",
    "time_per_token_s": "s",
    "peak_rss_bytes": "bytes",
    "private_bytes": "bytes",
    "disk_bytes": "bytes",
    "bytes_per_token": "bytes",
}


def json_types(annotation: Any) -> tuple[type, ...]:
    """The types that a JSON value of this annotation may have: a whole number is a float too."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(found for part in get_args(annotation) for found in json_types(part))
    if annotation is float:
        return (int, float)
    return (get_origin(annotation) or annotation,)


def required_fields(kind: type) -> dict[str, tuple[type, ...]]:
    hints = get_type_hints(kind)
    required: frozenset[str] = kind.__required_keys__  # type: ignore[attr-defined]
    return {name: json_types(hints[name]) for name in hints if name in required and name != "kind"}


FIELDS = {name: required_fields(kind) for name, kind in KINDS.items()}


def check(row: Mapping[str, Any]) -> Row:
    """The row, when it keeps the schema. Raises ResultsError that names the field otherwise."""
    kind = row.get("kind")
    if kind not in FIELDS:
        raise ResultsError(f"kind must be one of {', '.join(FIELDS)}, got {kind!r}: {row!r:.200}")
    for name, allowed in FIELDS[kind].items():
        value = row.get(name, ...)
        if isinstance(value, bool) or not isinstance(value, allowed):
            expected = " or ".join(one.__name__ for one in allowed)
            found = "it is missing" if value is ... else f"got {value!r:.80}"
            raise ResultsError(f"{kind}: {name} must be {expected}, {found}")
    if kind == "latency" and row["metric"] not in METRICS:
        raise ResultsError(f"metric must be one of {', '.join(METRICS)}, got {row['metric']!r}")
    if kind == "accuracy" and len(row["items"]) != row["count"]:
        raise ResultsError(f"{row['count']} items are counted, but {len(row['items'])} are listed")
    return cast(Row, row)


def key(row: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """What a row measures, or None for a kind that is never skipped."""
    fields = KEYS.get(row["kind"])
    return None if fields is None else (row["kind"], *(row.get(field) for field in fields))


def done(rows: Iterable[Mapping[str, Any]]) -> set[tuple[Any, ...]]:
    """The keys of what was measured."""
    return {found for row in rows if (found := key(row)) is not None}


def label(row: Measurement | FailureRow) -> str:
    return f"{row['engine']}:{row['variant']}"
