"""What people see while weights are read, quantized or merged: a bar, or a line for each stage."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.files.progress import Progress, ProgressCallback, size_text

log = logging.getLogger(__name__)

STAGES = {
    "hash": "Reading the checkpoint",
    "wait": "Waiting for another process that quantizes this model",
    "calibrate": "Quantizing block by block",
    "quantize": "Quantizing",
    "export": "Writing",
    "merge": "Merging",
    "verify": "Verifying",
    "generate": "Answering",
    "measure": "Measuring matrix by matrix",
}
ANSWERS = ("generate",)  # stages that count answers, not bytes
# Only these stages know their total size at the start; the others count file by file.
WHOLE = ("calibrate", "quantize", "merge", "export")

# What `load`, `quantize` and `merge` take: a function, False for silence, None for the default.
ProgressOption = ProgressCallback | bool | None


class ProgressBar:
    """A progress bar of tqdm on a terminal or in a notebook, elsewhere a line for each stage.

    tell: takes the lines
    Nothing is shown before the first step, and the bar is gone after the last.
    """

    def __init__(self, tell: Callable[[str], None] = log.info) -> None:
        self.tell = tell
        self.bar: Any = None
        self.stage = ""

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def update(self, step: Progress) -> None:
        if step.stage != self.stage:
            self.begin(step)
        if self.bar is None:
            return
        if step.total and step.total != self.bar.total:  # the next file
            self.bar.reset(step.total)
        self.bar.update(step.done - self.bar.n)

    def begin(self, step: Progress) -> None:
        self.__exit__()
        self.stage = step.stage
        title = STAGES.get(step.stage, step.stage)
        if not can_draw():
            self.tell(f"{title} ({size_text(step.total)})" if step.stage in WHOLE else title)
            return
        from tqdm.auto import tqdm

        self.bar = tqdm(
            desc=title,
            total=step.total or None,
            unit=" answers" if step.stage in ANSWERS else "B",
            unit_scale=step.stage not in ANSWERS,
            leave=False,
            dynamic_ncols=True,
        )


def can_draw() -> bool:
    """Whether somebody looks at what is drawn on stderr."""
    return in_notebook() or (sys.stderr is not None and sys.stderr.isatty())


def in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config


@contextmanager
def shown(progress: ProgressOption) -> Iterator[ProgressCallback | None]:
    """The callback that an option stands for. Raises ConfigError for another value."""
    if callable(progress):
        yield progress
    elif progress is False:
        yield None
    elif progress is None or progress is True:
        with ProgressBar() as bar:
            yield bar.update
    else:
        raise ConfigError(
            f"progress must be a function, False (silent) or None, got {progress!r}: "
            "leave it out for a progress bar"
        )
