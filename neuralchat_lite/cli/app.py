"""The application `neuralchat-lite`: its commands, its errors and its exit codes.

No command imports torch at the top of its module, so that `--help` is shown at once.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Annotated, Any

import typer

from neuralchat_lite import installed_version
from neuralchat_lite.cli import cache, chat, doctor, engines, generate, quantize, sensitivity, serve
from neuralchat_lite.cli.terminal import (
    discard_output,
    open_missing_streams,
    say,
    show_traceback,
    show_warnings,
    warn,
)
from neuralchat_lite.errors import NeuralchatError
from neuralchat_lite.shortages import shortages

DEBUG_VARIABLE = "NEURALCHAT_LITE_DEBUG"
INPUT_ERROR, INTERRUPTED = 2, 130
CLOSED_PIPE = 141  # as shells report a program that SIGPIPE has ended

app = typer.Typer(
    name="neuralchat-lite",
    help="Run quantized chat models (int4/int8 Mistral, Llama, Qwen) on an ordinary CPU.",
    epilog="MODEL is a folder with a checkpoint, a quantized folder, a GGUF file, or a Hugging "
    "Face name such as Intel/neural-chat-7b-v3-2. A checkpoint is quantized once and then mapped "
    "from the cache.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command(epilog=generate.EXAMPLE)(generate.generate)
app.command(epilog=chat.EXAMPLE)(chat.chat)
app.command(epilog=serve.EXAMPLE)(serve.serve)
app.command(epilog=quantize.QUANTIZE_EXAMPLE)(quantize.quantize)
app.command(epilog=quantize.MERGE_EXAMPLE)(quantize.merge)
app.command(epilog=quantize.EXPORT_EXAMPLE)(quantize.export)
app.command(epilog=sensitivity.EXAMPLE)(sensitivity.sensitivity)
app.command()(doctor.doctor)
app.add_typer(cache.app, name="cache")
app.add_typer(engines.app, name="engines")

# click's base of all errors about arguments; typer has its own copy of click in newer versions.
UsageError: type[Any] = typer.BadParameter.__mro__[1]


def show_version(wanted: bool) -> None:
    if wanted:
        say(f"neuralchat-lite {installed_version()}")
        raise typer.Exit


@app.callback()
def common(
    debug: Annotated[
        bool, typer.Option("--debug", envvar=DEBUG_VARIABLE, help="Show tracebacks.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code.

    0: done; 1: an internal error; 2: bad input, or no stdout, one line on stderr;
    130: interrupted; 141: the reader of our output has left
    """
    open_missing_streams()
    show_warnings()
    if sys.stdout is None:
        warn("neuralchat-lite: stdout is closed: send it to a file or a pipe, or to /dev/null")
        sys.exit(INPUT_ERROR)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="replace"
        )  # a terminal may not be able to show every character
    try:
        with shortages([errno.ENOMEM]):
            code = app(arguments, prog_name="neuralchat-lite", standalone_mode=False)
        sys.stdout.flush()  # here, where a full disk is still an error and not a footnote
    except KeyboardInterrupt:
        code = INTERRUPTED
    except (BrokenPipeError, SystemExit):
        # The reader of our output has closed it, as `head` does. click makes a SystemExit of that,
        # and of nothing else.
        discard_output()
        code = CLOSED_PIPE
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            sys.excepthook = show_traceback
            raise
        code = complain(error)
        if isinstance(error, OSError):
            discard_output()
    sys.exit(code)


def complain(error: Exception) -> int:
    """Print an error as one line on stderr, and return the exit code."""
    if isinstance(error, typer.Abort):
        return INTERRUPTED
    if isinstance(error, UsageError):
        message = error.format_message()
        if not message:  # no command was given, and the help was printed
            return INPUT_ERROR
        hint = error.ctx.command_path if error.ctx else "neuralchat-lite"
        warn(f"neuralchat-lite: {message} (see `{hint} --help`)")
        return INPUT_ERROR
    if isinstance(error, NeuralchatError):
        warn("neuralchat-lite: " + " ".join(str(error).split()))
        return INPUT_ERROR
    if isinstance(error, OSError) and error.strerror:  # a full disk, a closed folder
        place = f"{error.filename}: " if error.filename else ""
        warn(f"neuralchat-lite: {place}{error.strerror}: check the path, permissions and space")
        return INPUT_ERROR
    what = " ".join(f"{type(error).__name__}: {error}".split())
    warn(f"neuralchat-lite: internal error, {what} (run with --debug to see where)")
    return 1
