"""A chat on a terminal: editing with a history, and answers that nothing mixes into.

prompt_toolkit reads what is typed, rich draws the spinner. Only `chat` on a terminal imports them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralchat_lite.cli.terminal import Typed, for_terminal, warn, write

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings

QUOTES = '"""'
TAB = 8
ENDS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def at_terminal() -> bool:
    """Whether somebody types here and sees an editor: on stdout, or beside it on stderr."""
    shown = sys.stdout.isatty() or sys.stderr.isatty()
    return sys.stdin is not None and sys.stdin.isatty() and shown


def typed_messages() -> Iterator[Typed]:
    """What is typed, message by message, until Ctrl-D. A paste is one message."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import create_output

    session: PromptSession[str] = PromptSession(
        "> ",
        multiline=True,
        prompt_continuation="  ",
        key_bindings=keys(),
        history=history(),
        output=create_output(stdout=sys.stdout if sys.stdout.isatty() else sys.stderr),
    )
    warn("Type a message. /help shows the commands, Ctrl-D leaves, Ctrl-C cancels an answer.")
    while True:
        try:
            text = session.prompt().strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            warn("(/quit or Ctrl-D leaves)")
            continue
        typed = understood(text)
        if typed.text:
            yield typed


def understood(text: str) -> Typed:
    """A text in triple quotes, or of several lines, is a message even if it begins with a slash."""
    if text.startswith(QUOTES):
        return Typed(text.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n"))
    return Typed(text, is_command=text.startswith("/") and "\n" not in text)


def is_open(text: str) -> bool:
    """Whether a message has begun with triple quotes that are not closed yet."""
    start = text.lstrip()
    quoted = start.removeprefix(QUOTES)
    return start.startswith(QUOTES) and not quoted.rstrip().endswith(QUOTES)


def keys() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("enter")
    def send(event: Any) -> None:
        if is_open(event.current_buffer.text):
            event.current_buffer.insert_text("\n")
        else:
            event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def begin_line(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def history() -> History:
    """What was typed in earlier chats, in a file that only its owner reads."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = history_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_NONBLOCK, 0o600))
        if not path.is_file():
            raise FileExistsError(0, "it is not a file")
    except OSError as error:
        warn(f"{path} keeps no history ({error.strerror}): check permissions")
        return InMemoryHistory()
    return FileHistory(str(path))


def history_path() -> Path:
    """$XDG_STATE_HOME/neuralchat_lite/history, else in ~/.local/state."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local/state") / "neuralchat_lite/history"


@contextmanager
def answering() -> Iterator[Callable[[str], None]]:
    """A function that writes an answer. A spinner turns until its first text, words do not break
    at the edge, and what is typed meanwhile waits, unseen, for the next prompt."""
    on_screen = sys.stdout.isatty()
    wrapper = Wrapper(columns_of_terminal)
    spinner = start_spinner()

    def put(text: str) -> None:
        if text:
            spinner.close()
            write(wrapper.push(for_terminal(text)) if on_screen else text)

    with unseen_typing(), spinner:
        try:
            yield put
        finally:
            if on_screen:
                write(wrapper.finish())


def start_spinner() -> contextlib.ExitStack:
    from rich.console import Console

    stack = contextlib.ExitStack()
    if sys.stderr.isatty():
        stack.enter_context(Console(stderr=True).status("", spinner="dots"))
    return stack


@contextmanager
def unseen_typing() -> Iterator[None]:
    """Switch off the echo of the terminal. What is typed stays in its buffer; Ctrl-C works."""
    import termios

    try:
        before = termios.tcgetattr(sys.stdin)
    except (termios.error, ValueError, OSError):  # not a terminal
        yield
        return
    quiet = [*before]
    quiet[3] &= ~(termios.ECHO | termios.ICANON)  # canonical input would be cut at its line ends
    termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def columns_of_terminal() -> int:
    """The width of the terminal itself: $COLUMNS, which shutil prefers, may be that of another one
    or of a time before the window changed."""
    with contextlib.suppress(OSError, ValueError):
        if columns := os.get_terminal_size(sys.stdout.fileno()).columns:
            return columns
    return shutil.get_terminal_size().columns


@contextmanager
def left_as_it_was() -> Iterator[None]:
    """Give the terminal back as it was found when a signal ends the process, which then dies of
    it: with no echo, the shell would show nothing of what is typed."""
    import termios

    try:
        before = termios.tcgetattr(sys.stdin)
    except (termios.error, ValueError, OSError):  # not a terminal
        yield
        return

    def end(number: int, _: Any) -> None:
        with contextlib.suppress(termios.error, ValueError, OSError):  # it may be gone
            termios.tcsetattr(sys.stdin, termios.TCSANOW, before)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    replaced = [each for each in ENDS if signal.getsignal(each) is signal.SIG_DFL]
    for number in replaced:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)


class Wrapper:
    """Break lines between words, in a text that comes piece by piece.

    A word, and the space before it, is held back until it ends. One that is as long as a line is
    let go as it is.
    """

    def __init__(self, columns: Callable[[], int]) -> None:
        self.columns = columns
        self.column = 0
        self.gap = self.word = ""
        self.is_inside = False  # a word whose beginning was let go

    def push(self, text: str) -> str:
        return "".join(self.add(character) for character in text)

    def add(self, character: str) -> str:
        if character == "\n":
            out = self.finish() + character
            self.column, self.gap, self.is_inside = 0, "", False
            return out
        if character in " \t":
            out = self.finish()
            self.is_inside = False
            stop = TAB - (self.column + len(self.gap)) % TAB
            self.gap += " " * (1 if character == " " else stop)
            return out
        if width_of(character) == 2:  # of Chinese, Japanese or Korean: a line may end here
            out = self.finish()
            self.word = character
            return out + self.finish()
        self.word += character
        if width_of(self.word) < self.columns():
            return ""
        out = self.finish()
        self.is_inside = True
        return out

    def finish(self) -> str:
        """The word that was held back."""
        if not self.word:
            return ""
        gap, word, columns = self.gap, self.word, self.columns()
        if self.column and not self.is_inside and self.column + len(gap) + width_of(word) > columns:
            self.column, gap = 0, "\n"
        else:
            self.column += len(gap)
        self.column += width_of(word)
        if self.column > columns:  # a word longer than a line
            self.column %= columns
        self.gap = self.word = ""
        return gap + word


def width_of(text: str) -> int:
    """Columns that a text takes on a terminal."""
    from prompt_toolkit.utils import get_cwidth

    return get_cwidth(text)
