"""One case of each outcome, to see that the runner tells them apart."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from neuralchat_lite.errors import CheckpointError, EngineError

from .outcome import LIBRARY, ORACLE, Case, Outcome, attempt


def fail(error: BaseException) -> Any:
    raise error


def open_pipe(place: Path) -> None:
    os.mkfifo(place / "pipe")
    (place / "pipe").read_bytes()


# What a library might do -> how the runner should call it.
PLANTED: tuple[tuple[Callable[[Path], Any], str], ...] = (
    (lambda place: 1, "right"),
    (lambda place: fail(CheckpointError("x is 1, expected 2: download it again")), "refused"),
    (lambda place: fail(CheckpointError("two lines\nof a message: download it again")), "foreign"),
    (lambda place: fail(CheckpointError("unreadable \u200b: download it again")), "foreign"),
    (lambda place: fail(EngineError("x" * 2000)), "foreign"),
    (lambda place: fail(ValueError("not ours")), "foreign"),
    (lambda place: fail(SystemExit(3)), "foreign"),
    (lambda place: bytearray(1 << 40), "foreign"),
    (lambda place: os.kill(os.getpid(), signal.SIGSEGV), "crash"),
    (lambda place: os._exit(0), "crash"),
    (lambda place: time.sleep(1e6), "hang"),
    (open_pipe, "hang"),
    (lambda place: 2, "wrong"),
)


class Planted:
    """Case number i does entry i of PLANTED."""

    name = "planted"

    def prepare(self, root: Path) -> None:
        pass

    def run(self, case: Case) -> Outcome:
        call, _ = PLANTED[case.seed % len(PLANTED)]
        case.done.append(f"entry {case.seed}")
        case.begins(LIBRARY)
        answer, failed = attempt(lambda: call(case.place))
        case.begins(ORACLE)
        return failed or Outcome("wrong" if answer == 2 else "right")
