"""What the command line shows: text as it comes, progress, sizes. Results go to stdout, all else
to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuralchat_lite.generation.sequence import Timings

STAGES = {
    "hash": "Reading the checkpoint",
    "wait": "Waiting for another process that quantizes this model",
    "quantize": "Quantizing",
    "merge": "Merging",
    "verify": "Verifying",
}


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def typed_lines() -> Iterator[str]:
    """Lines from the terminal or a pipe, without empty ones, until the input ends."""
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        import readline  # noqa: F401 - gives input() a history and editing

        warn("Type a message. /reset forgets, /quit or Ctrl-D leaves, Ctrl-C cancels an answer.")
    while True:
        try:
            line = input("> " if at_terminal else "").strip()
        except UnicodeDecodeError as error:
            warn(f"That line is not valid UTF-8 ({error.reason}); it was not sent.")
            continue
        except EOFError:
            if at_terminal:
                warn("")
            return
        except KeyboardInterrupt:
            if not at_terminal:
                raise
            warn("\n(/quit or Ctrl-D leaves)")
            continue
        if line:
            yield line


class QuantizingProgress:
    """A bar on stderr while quantizing; a line per stage when stderr is no terminal.

    Nothing is shown unless there is something to do.
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

    def update(self, step: Any) -> None:
        """step: a `files.progress.Progress`"""
        if step.stage != self.stage:
            self.begin(step)
        if self.bar is not None:
            self.bar.update(self.task, completed=step.done, total=step.total or None)

    def begin(self, step: Any) -> None:
        self.__exit__()
        self.stage = step.stage
        title = STAGES.get(step.stage, step.stage)
        if not sys.stderr.isatty():
            # Other stages count file by file, and only these know the whole at their beginning.
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


def size_text(count: float) -> str:
    """Bytes as people read them, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def timings_text(timings: Timings) -> str:
    """One line on what a reply cost."""
    parts = [
        f"{timings.new_tokens} tokens",
        f"first after {timings.time_to_first_token_s * 1000:.0f} ms "
        f"({timings.prompt_tokens - timings.cached_tokens} of {timings.prompt_tokens} "
        "prompt tokens fed)",
    ]
    if timings.time_per_token_s and timings.tokens_per_second and timings.bytes_per_second:
        parts.append(
            f"then {timings.time_per_token_s * 1000:.1f} ms each "
            f"({timings.tokens_per_second:.1f} tokens/s)"
        )
        parts.append(
            f"{size_text(timings.bytes_per_token)} a token, "
            f"{size_text(timings.bytes_per_second)}/s read"
        )
    if timings.load_s is not None:
        parts.append(f"loaded in {timings.load_s:.2f} s")
    return "; ".join(parts)
