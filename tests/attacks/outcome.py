"""What became of a case, and the two phases in which it runs.

An attack mutates, calls the library, and then asks the oracle, which may take its time: the limit
counts for the library alone.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from neuralchat_lite.errors import NeuralchatError

MESSAGE_LIMIT = 1000
# Kinds that must not occur, and those that are as they should be.
FAULTS = ("crash", "hang", "foreign", "wrong")
FINE = ("right", "refused")
LIBRARY, ORACLE = "library", "oracle"  # the phases of a case


@dataclass(frozen=True)
class Outcome:
    """kind: one of FAULTS or FINE. what: the error's type or what is wrong; detail: more of it."""

    kind: str
    what: str = ""
    detail: str = ""


@dataclass
class Case:
    """One attempt.

    begins: called with LIBRARY before the library is, and with ORACLE when it has answered
    done: the mutations, in words
    """

    seed: int
    place: Path
    begins: Callable[[str], None]
    done: list[str] = field(default_factory=list)


class Attack(Protocol):
    """name: as the command line knows it. prepare: makes what cases start from, once."""

    name: str

    def prepare(self, root: Path) -> None: ...

    def run(self, case: Case) -> Outcome: ...


def attempt(call: Callable[[], Any]) -> tuple[Any, Outcome | None]:
    """What a call of the library gave, or how it refused."""
    try:
        return call(), None
    except NeuralchatError as error:
        return None, refusal(error)
    except BaseException as error:  # even SystemExit: nothing else may leave the library
        return None, foreign(error)


def refusal(error: NeuralchatError) -> Outcome:
    """Refused, unless nobody could read the message."""
    text, kind = str(error), type(error).__name__
    if not text.isprintable():
        bad = next(char for char in text if not char.isprintable())
        return Outcome("foreign", f"{kind} with {bad!r} in its message", text[:300])
    if len(text) > MESSAGE_LIMIT:
        return Outcome("foreign", f"{kind} of more than {MESSAGE_LIMIT} characters", text[:300])
    if len(text) < 20:
        return Outcome("foreign", f"{kind} of {len(text)} characters", text)
    return Outcome("refused", kind, text)


def foreign(error: BaseException) -> Outcome:
    """Another exception, with the line of the library that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/neuralchat_lite/" in frame.filename]
    place = "outside"
    if ours:
        place = f"{ours[-1].filename.rpartition('/neuralchat_lite/')[2]}:{ours[-1].name}"
    return Outcome("foreign", f"{type(error).__name__} in {place}", str(error)[:300])
