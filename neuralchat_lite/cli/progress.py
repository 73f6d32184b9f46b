"""The progress of reading, quantizing and merging weights, shown on stderr."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from neuralchat_lite.cli.terminal import size_text, warn

if TYPE_CHECKING:
    from neuralchat_lite.files.progress import Progress

STAGES = {
    "hash": "Reading the checkpoint",
    "wait": "Waiting for another process that quantizes this model",
    "quantize": "Quantizing",
    "merge": "Merging",
    "verify": "Verifying",
}


class QuantizingProgress:
    """A progress bar on stderr, or one line for each stage if stderr is not a terminal.

    Nothing is shown before the first step.
    """

    def __init__(self) -> None:
        self.bar: Any = None
        self.task: Any = None
        self.stage = ""

    def __enter__(self) -> QuantizingProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def update(self, step: Progress) -> None:
        if step.stage != self.stage:
            self.begin(step)
        if self.bar is not None:
            self.bar.update(self.task, completed=step.done, total=step.total or None)

    def begin(self, step: Progress) -> None:
        self.__exit__()
        self.stage = step.stage
        title = STAGES.get(step.stage, step.stage)
        if not sys.stderr.isatty():
            # Only these stages know their total size at the start; the others count file by file.
            whole = f" ({size_text(step.total)})" if step.stage in ("quantize", "merge") else ""
            warn(title + whole)
            return
        from rich import progress as rich
        from rich.console import Console

        self.bar = rich.Progress(
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.DownloadColumn(),
            rich.TransferSpeedColumn(),
            rich.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self.bar.start()
        self.task = self.bar.add_task(title, total=step.total or None)
