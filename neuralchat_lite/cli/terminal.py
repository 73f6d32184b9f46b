"""What is read from the terminal and written to it: results to stdout, all else to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from neuralchat_lite.errors import PromptError


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def read_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise PromptError(f"stdin is not valid UTF-8 ({error}): convert it first") from None


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


def size_text(count: float) -> str:
    """Bytes as people read them, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
