"""JSON files, read to a bound and checked for what no file of a model may hold.

JSON has no NaN and no infinity, but Python's reader takes them, and makes an infinity of 1e999.
Values may be quoted in errors and walked by recursion. So numbers are finite and of a sane length,
nesting has a limit, and texts can be written as UTF-8.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, NoReturn

from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.files.regular import read_regular, remedy_of

JSON_LIMIT = 16 << 20  # bytes; the index of the largest models has 0.2 MB
DEEPEST = 64
LONGEST_NUMBER = 400  # characters; the largest float has 309 digits
DOWNLOAD = "download it again"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file. Raises CheckpointError."""
    try:
        data = read_regular(path, JSON_LIMIT)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing: a model folder needs it; download the model again, "
            "or check that the path is the folder with config.json"
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}): {remedy_of(error)}"
        ) from None
    try:
        return parse_json(data)
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}): {DOWNLOAD}") from None


def read_optional_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file, an empty one where nothing has its name. A link that leads nowhere
    is refused. Raises CheckpointError."""
    return read_json(path) if os.path.lexists(path) else {}


def parse_json(data: bytes | str) -> dict[str, Any]:
    """The JSON object of a text. Raises ValueError with what is wrong in it."""
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        value = json.loads(text, parse_constant=not_a_number, parse_float=finite, parse_int=integer)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} deep") from None
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, expected a JSON object")
    check(value)
    return value


def not_a_number(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, and JSON has only finite numbers")


def finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds {text[:20]}, which is beyond the largest number")
    return value


def integer(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"it holds an integer of {len(text)} digits")
    return int(text)


def check(value: Any) -> None:
    """Raise ValueError for nesting beyond the limit, and for texts that are none.

    Level by level, not by recursion, which has a limit of its own.
    """
    level = [value]
    for _ in range(DEEPEST):
        texts: list[str] = []
        inner: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                texts.extend(part)
                inner.extend(part.values())
            elif isinstance(part, list):
                inner.extend(part)
            elif isinstance(part, str):
                texts.append(part)
        for text in texts:
            if not text.isascii():
                check_text(text)
        if not inner:
            return
        level = inner
    raise ValueError(f"it is nested more than {DEEPEST} deep")


def check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds a text with half a character (a lone surrogate)") from None
