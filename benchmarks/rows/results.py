"""Results files: JSON lines, one fact a line, on disk as soon as it is known.

A run is a file. Its first line says where and how (`run`), then come bandwidth probes (`probe`),
samples (`latency`, `kernel`), scores with the value of every item (`accuracy`), and what could not
be measured (`failure`). A line is appended and flushed at once, so an interrupted run keeps what it
has, and later goes on with the rest. A line that was cut off while it was written is dropped, with
a warning.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.rows.kinds import ResultsError, Row, check, done, key


class ResultsFile:
    """The file of a run: read once when it is opened, then appended to.

    rows: all that it holds; done: the keys of what was measured
    Raises ResultsError for a file that is there and breaks the schema.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = read(path) if path.exists() else []
        self.done = done(self.rows)

    def append(self, row: Mapping[str, Any]) -> None:
        """See the function of this name."""
        self.rows.append(append(self.path, row))
        self.done |= done([row])

    def has(self, row: Mapping[str, Any]) -> bool:
        """Whether the measurement that a row describes is there already."""
        return key(row) in self.done


def read_all(paths: Iterable[Path]) -> list[Row]:
    """All rows of several files, one after the other. Raises ResultsError as `read` does."""
    return [row for path in paths for row in read(path)]


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
                    f"{path}, line {index} is not JSON ({error}): remove that line"
                ) from error
            if not isinstance(row, dict):
                raise ResultsError(f"{path}, line {index} is not a JSON object: remove that line")
            try:
                checked = check(row)
            except ResultsError as error:
                raise ResultsError(f"{path}, line {index}: {error}") from error
            yield checked


def append(path: Path, row: Mapping[str, Any]) -> Row:
    """Add a row. When this returns, the row is on the disk.

    Raises ResultsError for a row that breaks the schema, or holds NaN or infinity: write a
    `failure` instead of these.
    """
    try:
        checked = check(row)
        line = json.dumps(checked, ensure_ascii=False, allow_nan=False) + "\n"
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
    return checked


def drop_torn_line(file: Any) -> None:
    """Cut a file back to its last whole line. Nearly always it ends there already."""
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
