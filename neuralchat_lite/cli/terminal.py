"""What is read from the terminal and written to it: results to stdout, all else to stderr."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

from neuralchat_lite.errors import ConfigError, PromptError, visible

BYTE_ORDER_MARK = "\ufeff"
FINAL_NEWLINE = re.compile(r"\r?\n\Z")
ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


def write(text: str) -> None:
    """Results. A file or a pipe gets them as they are, a terminal as text that cannot steer it."""
    sys.stdout.write(for_terminal(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def for_terminal(text: str) -> str:
    # Each character is judged alone, so it does not matter how an escape sequence is cut.
    return visible(text.replace("\r", ""))


def say(line: str) -> None:
    write(f"{line}\n")


def warn(text: str) -> None:
    """All that is not a result. Names and messages in it may come from a model's folder."""
    # When nobody reads stderr, the result does not suffer.
    with contextlib.suppress(OSError):
        print(visible(text), file=sys.stderr, flush=True)


class Warnings(logging.Handler):
    """What the library logs, as a line on stderr like every other."""

    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


def show_warnings() -> None:
    log = logging.getLogger("neuralchat_lite")
    if not any(isinstance(handler, Warnings) for handler in log.handlers):
        log.addHandler(Warnings(logging.WARNING))


def show_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """For `sys.excepthook`: the messages of other packages' errors may quote a model's files."""
    warn("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"))


def open_missing_streams() -> None:
    """Give descriptors 0, 1 and 2 that the shell has closed (`<&-`) to /dev/null.

    Otherwise the next file that is opened gets the number, and what is printed goes into it.
    `sys.stdin` and `sys.stdout` stay None, so that whoever needs them can tell.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - until the end


def discard_output() -> None:
    """Let go of what stdout could not take, or Python would complain about it when it ends."""
    with contextlib.suppress(OSError, ValueError):  # not a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def require_stdin() -> None:
    if sys.stdin is None:
        raise PromptError("stdin is closed: connect it to a terminal, a file or a pipe")


def read_stdin() -> str:
    require_stdin()
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise PromptError(f"stdin is not valid UTF-8 ({error}): convert it first") from None
    except OSError as error:
        why = error.strerror or error
        raise PromptError(f"stdin cannot be read ({why}): connect it to a file or a pipe") from None


def without_file_marks(text: str) -> str:
    """A message without what editors and `echo` add to it: a byte-order mark, a final newline."""
    return FINAL_NEWLINE.sub("", text.removeprefix(BYTE_ORDER_MARK))


def unescaped(text: str, option: str) -> str:
    r"""An argument with \n, \t and \\ for a newline, a tab and a backslash, which shells make hard
    to type. Raises ConfigError for another escape."""

    def replace(found: re.Match[str]) -> str:
        if found[1] not in ESCAPES:
            raise ConfigError(
                f"{option} has {found[0]} in it, expected \\n, \\t or \\\\ after a backslash: "
                "write a backslash itself twice"
            )
        return ESCAPES[found[1]]

    return re.sub(r"\\(.?)", replace, text, flags=re.DOTALL)


@dataclass(frozen=True)
class Typed:
    """What somebody has said to a chat: a message or a command."""

    text: str
    is_command: bool = False


def typed_lines() -> Iterator[Typed]:
    """Lines from a file or a pipe, without empty ones, until the input ends."""
    require_stdin()
    first = True
    while True:
        try:
            line = input()
        except UnicodeDecodeError as error:
            warn(f"That line is not valid UTF-8 ({error.reason}); it was not sent.")
            continue
        except EOFError:
            return
        line = (line.removeprefix(BYTE_ORDER_MARK) if first else line).strip()
        first = False
        if line:
            yield Typed(line, is_command=line.startswith("/"))
