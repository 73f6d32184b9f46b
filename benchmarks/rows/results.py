"""What a benchmark writes: JSON lines, one fact a line, on disk as soon as it is known.

A run is a file. Its first line says where and how (`run`), then come bandwidth probes (`probe`),
samples (`latency`), scores with the value of every item (`accuracy`), and what could not be
measured (`failure`). A line is appended and flushed at once, so an interrupted run keeps what it
has, and goes on with what is not there yet. A line that was cut off while it was written is no
fact: it is dropped, with a warning.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from neuralchat_lite.errors import NeuralchatError

Row = Mapping[str, Any]


class ResultsError(NeuralchatError, ValueError):
    """A results file, or a row of one, is not what it must be."""


number, text = (int, float), (str,)
optional_text, optional_number = (str, type(None)), (int, float, type(None))

# kind -> field -> what its value may be. Further fields are allowed: they are more conditions.
FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "run": {
        "run_id": text,
        "time": text,
        "machine": (dict,),
        "versions": (dict,),
        "commit": optional_text,
        "arguments": (dict,),
    },
    "probe": {"bandwidth_bytes_per_s": number, "threads": (int,), "time": text},
    "latency": {
        "engine": text,
        "variant": text,
        "model": text,
        "shape_sha256": text,
        "prompt_sha256": optional_text,  # None where nothing is prompted: loading, disk
        "threads": (int,),
        "metric": text,
        "batch": (int, type(None)),
        "context": (int, type(None)),
        "unit": text,
        "samples": (list,),
        "round": (int, type(None)),
        "conditions": (dict,),
    },
    "accuracy": {
        "engine": text,
        "variant": text,
        "model": text,
        "model_sha256": text,
        "task": text,
        "metric": text,
        "value": number,
        "stderr": optional_number,
        "count": (int,),
        "items": (list,),
        "data_sha256": text,
        "shots": (int,),
        "conditions": (dict,),
    },
    "failure": {
        "engine": text,
        "variant": text,
        "model": text,
        "stage": text,
        "reason": text,
        "last_lines": (list,),
    },
}

# What makes two rows the same measurement. `--resume` skips those that a file has; failures are
# tried again.
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


def check(row: Row) -> Row:
    """The row, when it keeps the schema. Raises ResultsError that names the field otherwise."""
    kind = row.get("kind")
    if kind not in FIELDS:
        raise ResultsError(f"kind must be one of {', '.join(FIELDS)}, got {kind!r}: {row!r:.200}")
    for name, types in FIELDS[kind].items():
        value = row.get(name, ...)
        wrong = isinstance(value, bool) or not isinstance(value, types)
        if wrong:
            expected = " or ".join(kind.__name__ for kind in types)
            found = "it is missing" if value is ... else f"got {value!r:.80}"
            raise ResultsError(f"{kind}: {name} must be {expected}, {found}")
    if kind == "latency" and row["metric"] not in METRICS:
        raise ResultsError(f"metric must be one of {', '.join(METRICS)}, got {row['metric']!r}")
    if kind == "accuracy" and len(row["items"]) != row["count"]:
        raise ResultsError(f"{row['count']} items are counted, but {len(row['items'])} are listed")
    return row


def key(row: Row) -> tuple[Any, ...] | None:
    """What a row measures, or None for a kind that is never skipped."""
    fields = KEYS.get(row["kind"])
    return None if fields is None else (row["kind"], *(row.get(field) for field in fields))


def done(rows: Iterable[Row]) -> set[tuple[Any, ...]]:
    """The keys of what was measured."""
    return {found for row in rows if (found := key(row)) is not None}


def read(path: Path) -> list[Row]:
    """All rows of a file, checked. Raises ResultsError with file and line."""
    try:
        return list(rows_of(path))
    except OSError as error:
        raise ResultsError(f"{path} cannot be read: {error.strerror}") from error


def rows_of(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for index, line in enumerate(file, 1):
            if not line.endswith("\n"):
                warnings.warn(f"{path}: line {index} was cut off and is left out", stacklevel=3)
                return
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ResultsError(
                    f"{path}, line {index} is no JSON ({error}): remove that line"
                ) from error
            if not isinstance(row, dict):
                raise ResultsError(f"{path}, line {index} is no JSON object: remove that line")
            try:
                yield check(row)
            except ResultsError as error:
                raise ResultsError(f"{path}, line {index}: {error}") from error


def append(path: Path, row: Row) -> None:
    """Add a row; when this returns it is on disk. Raises ResultsError for a row that is not one.

    NaN and infinity are no results: where they come up, write a `failure`.
    """
    try:
        line = json.dumps(check(row), ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        if isinstance(error, ResultsError):
            raise
        raise ResultsError(f"{row['kind']} holds a number that is not finite: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        drop_torn_line(file)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def drop_torn_line(file: Any) -> None:
    """Cut a file back to its last whole line, which is nearly always where it ends already."""
    end = file.seek(0, os.SEEK_END)
    kept = end
    while kept > 0:
        start = max(0, kept - 4096)
        file.seek(start)
        newline = file.read(kept - start).rfind(b"\n")
        kept = start + newline + 1
        if newline >= 0:
            break
    if kept != end:
        file.truncate(kept)
    file.seek(kept)
