"""The command line: `neuralchat-lite`. Heavy imports wait until a command needs them."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuralchat_lite import installed_version
from neuralchat_lite.cli.housekeeping import cache_app, engines_app
from neuralchat_lite.cli.terminal import (
    QuantizingProgress,
    timings_text,
    typed_lines,
    warn,
    write,
)
from neuralchat_lite.errors import ConfigError, NeuralchatError, PromptError

if TYPE_CHECKING:
    from neuralchat_lite.api import Model
    from neuralchat_lite.generation.sequence import Piece, Timings

DEBUG_VARIABLE = "NEURALCHAT_LITE_DEBUG"
INPUT_ERROR, INTERRUPTED = 2, 130

app = typer.Typer(
    name="neuralchat-lite",
    help="Run quantized chat models (int4/int8 Mistral, Llama, Qwen) on an ordinary CPU.",
    epilog="MODEL is a folder with a checkpoint, a quantized folder, or a Hugging Face name such "
    "as Intel/neural-chat-7b-v3-2. A checkpoint is quantized once and then mapped from the cache.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.add_typer(cache_app, name="cache")
app.add_typer(engines_app, name="engines")

# click's base of all errors about arguments; typer has its own copy of click in newer versions.
UsageError: type[Any] = typer.BadParameter.__mro__[1]

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Folder or hub name.")]


def option(panel: str, help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


TEXT, SAMPLING, WEIGHTS, RUN = "Text", "Sampling", "Weights", "Running"
MaxNewTokens = Annotated[int, option(TEXT, "Tokens to generate at most.")]
Stop = Annotated[list[str] | None, option(TEXT, "End at this text (repeatable).")]
Temperature = Annotated[float, option(SAMPLING, "0 takes the likeliest token.")]
TopK = Annotated[int, option(SAMPLING, "Sample from the k likeliest (0: off).")]
TopP = Annotated[float, option(SAMPLING, "Sample from the likeliest that sum to p (1: off).")]
MinP = Annotated[float, option(SAMPLING, "Drop tokens below p times the likeliest (0: off).")]
RepetitionPenalty = Annotated[float, option(SAMPLING, "Penalise what has occurred (1: off).")]
Seed = Annotated[int | None, option(SAMPLING, "Make sampling repeatable.")]
WeightDtype = Annotated[str | None, option(WEIGHTS, "int4 (default), int4_fullrange or int8.")]
GroupSize = Annotated[
    int | None, option(WEIGHTS, "Columns that share a scale: 32 (default), 64, 128, -1 (a row).")
]
Scheme = Annotated[str | None, option(WEIGHTS, "sym (default) or asym.")]
ScaleDtype = Annotated[str | None, option(WEIGHTS, "fp16 (default), bf16 or fp32.")]
ComputeDtype = Annotated[
    str | None, option(WEIGHTS, "Precision of activations: bf16 (default), fp32 or int8.")
]
Dtype = Annotated[str | None, option(WEIGHTS, "fp32 or bf16: do not quantize.")]
Adapter = Annotated[
    list[str] | None,
    option(WEIGHTS, "Merge this LoRA adapter first (folder or hub name; repeatable, in order)."),
]
EngineName = Annotated[
    str, option(RUN, "native; torch, ipex and itrex are for comparison (see `engines list`).")
]
Threads = Annotated[int | None, option(RUN, "Default: the physical cores that we may use.")]
ContextLength = Annotated[int | None, option(RUN, "Positions to allow.")]
Revision = Annotated[str | None, option(RUN, "Branch, tag or commit of a hub name.")]
ShowTimings = Annotated[bool, option(RUN, "Say on stderr what it took.", "--timings")]
System = Annotated[str | None, option(TEXT, "The system message.")]


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"neuralchat-lite {installed_version()}")
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


@app.command(
    epilog="Example: [bold]neuralchat-lite generate ./stories260K -p 'Once upon a time'[/bold]"
)
def generate(
    model: ModelArgument,
    prompt: Annotated[str, option(TEXT, "The prompt; - reads it from stdin.", "-p", "--prompt")],
    max_new_tokens: MaxNewTokens = 256,
    stop: Stop = None,
    chat: Annotated[bool, option(TEXT, "Send the prompt as a chat message.", "--chat")] = False,
    system: System = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = None,
    weight_dtype: WeightDtype = None,
    group_size: GroupSize = None,
    scheme: Scheme = None,
    scale_dtype: ScaleDtype = None,
    compute_dtype: ComputeDtype = None,
    dtype: Dtype = None,
    adapter: Adapter = None,
    engine: EngineName = "native",
    threads: Threads = None,
    context_length: ContextLength = None,
    revision: Revision = None,
    timings: ShowTimings = False,
) -> None:
    """Continue a text, or answer a message with [bold]--chat[/bold].

    A text is printed with its continuation, so that it reads as a whole; an answer alone.
    """
    asked = dict(locals())
    options = generation_options(asked)
    if system is not None and not chat:
        raise ConfigError(f"--system {system!r} is part of a chat: give --chat too")
    text = read_stdin() if prompt == "-" else prompt
    loaded = load_model(model, asked)
    messages = [{"role": "system", "content": system}] if system is not None else []
    if chat:
        say_template(loaded)
        pieces = loaded.stream([*messages, {"role": "user", "content": text}], **options)
    else:
        pieces = loaded.stream(text, **options)
        write(text)
    spent = show(pieces)
    if timings and spent:
        warn(timings_text(spent))


@app.command(epilog="Example: [bold]neuralchat-lite chat Intel/neural-chat-7b-v3-2[/bold]")
def chat(
    model: ModelArgument,
    system: System = None,
    max_new_tokens: MaxNewTokens = 1024,
    stop: Stop = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = None,
    weight_dtype: WeightDtype = None,
    group_size: GroupSize = None,
    scheme: Scheme = None,
    scale_dtype: ScaleDtype = None,
    compute_dtype: ComputeDtype = None,
    dtype: Dtype = None,
    adapter: Adapter = None,
    engine: EngineName = "native",
    threads: Threads = None,
    context_length: ContextLength = None,
    revision: Revision = None,
    timings: ShowTimings = False,
) -> None:
    """Talk with a model, turn by turn.

    [bold]/reset[/bold] forgets the conversation, [bold]/quit[/bold] or Ctrl-D leaves, Ctrl-C
    cancels an answer.
    """
    asked = dict(locals())
    options = generation_options(asked)
    loaded = load_model(model, asked)
    say_template(loaded)
    conversation = loaded.conversation(system, **options)
    commands = {"/reset": conversation.reset}
    for line in typed_lines():
        if line in ("/quit", "/exit"):
            return
        if line.startswith("/"):
            if line not in commands:
                warn(f"{line} is no command, expected /reset or /quit")
                continue
            commands[line]()
            warn("The conversation is forgotten.")
            continue
        try:
            spent = show(conversation.stream(line))
        except KeyboardInterrupt:
            warn("\n(cancelled)")
        except PromptError as error:  # such as a full context: the session goes on
            warn(f"{error}; /reset starts anew")
        else:
            if timings and spent:
                warn(timings_text(spent))


@app.command(
    epilog="Example: [bold]neuralchat-lite quantize ./mistral-7b -o ./mistral-7b-int4 "
    "--group-size 128[/bold]"
)
def quantize(
    model: ModelArgument,
    output: Annotated[
        Path | None,
        option(WEIGHTS, "Write a folder that stands alone here, not the cache.", "-o", "--output"),
    ] = None,
    weight_dtype: WeightDtype = None,
    group_size: GroupSize = None,
    scheme: Scheme = None,
    scale_dtype: ScaleDtype = None,
    compute_dtype: ComputeDtype = None,
    adapter: Adapter = None,
    revision: Revision = None,
) -> None:
    """Quantize a checkpoint, into the cache or into a folder of its own, and print the folder."""
    config = quantization_options(dict(locals()))
    if output is None and compute_dtype is not None:
        raise ConfigError(
            f"--compute-dtype {compute_dtype} is no property of quantized weights in the cache: "
            "give it to generate or chat, or write a folder of its own with -o"
        )
    from neuralchat_lite.api import quantize as quantize_model

    with QuantizingProgress() as progress:
        folder = quantize_model(
            model,
            config,
            output,
            adapters=adapter or (),
            revision=revision,
            progress=progress.update,
        )
    print(folder)


@app.command(
    epilog="Example: [bold]neuralchat-lite merge ./mistral-7b ./sft_lora ./dpo_lora "
    "-o ./mistral-7b-dpo[/bold]"
)
def merge(
    model: ModelArgument,
    adapters: Annotated[list[str], typer.Argument(metavar="ADAPTER...", help="LoRA adapters.")],
    output: Annotated[Path, option(WEIGHTS, "The new folder.", "-o", "--output")],
    revision: Revision = None,
) -> None:
    """Merge LoRA adapters into a checkpoint, in order, and print the folder.

    The folder has the checkpoint's own dtype, and the last adapter's tokenizer where it brings
    one. Quantizing does not need it: see [bold]--adapter[/bold] of the other commands.
    """
    from neuralchat_lite.api import merge as merge_adapters

    with QuantizingProgress() as progress:
        folder = merge_adapters(
            model, adapters, output, revision=revision, progress=progress.update
        )
    print(folder)


@app.command()
def doctor() -> None:
    """Say what this machine has, what will run on it, and why."""
    from neuralchat_lite.cli.doctor import findings

    for name, value in findings():
        print(f"{name + ':':<13} {value}", flush=True)


def generation_options(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a command's arguments that `GenerationOptions` has."""
    from neuralchat_lite.generation.options import RULES, GenerationOptions

    options = {name: asked[name] for name in RULES if name in asked}
    options["stop"] = tuple(options["stop"] or ())
    GenerationOptions.of(options)  # a bad value is said before a model is loaded
    return options


def quantization_options(asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """Those options of the weights that were given; None when none was, so that a quantized
    folder's own configuration holds."""
    from neuralchat_lite.quantization.config import WeightOnlyQuantConfig

    names = ("weight_dtype", "group_size", "scheme", "scale_dtype", "compute_dtype")
    given = {name: asked[name] for name in names if asked[name] is not None}
    WeightOnlyQuantConfig(**given)  # a bad value is said before anything is read
    return given or None


def load_model(model: str, asked: Mapping[str, Any]) -> Model:
    from neuralchat_lite.api import load

    names = ("engine", "dtype", "revision", "context_length", "threads")
    with QuantizingProgress() as progress:
        return load(
            model,
            quantization_options(asked),
            adapters=asked["adapter"] or (),
            progress=progress.update,
            **{name: asked[name] for name in names},
        )


def read_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise PromptError(f"stdin is not valid UTF-8 ({error}): convert it first") from None


def say_template(model: Model) -> None:
    if model.tokenizer.chat_template is None:
        warn("The model has no chat template: messages take neural-chat's form.")


def show(pieces: Iterator[Piece]) -> Timings | None:
    """Write the text as it comes; the timings of the last piece."""
    spent, text = None, ""
    try:
        for piece in pieces:
            write(piece.text)
            text, spent = piece.text or text, piece.timings
    finally:
        if not text.endswith("\n"):
            write("\n")
    return spent


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0 done, 2 bad input (one line on stderr), 130 interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may not know every character
    try:
        code = app(arguments, prog_name="neuralchat-lite", standalone_mode=False)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:  # who read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        code = complain(error)
    sys.exit(code)


def complain(error: Exception) -> int:
    """Say an error on one line of stderr; its exit code."""
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
