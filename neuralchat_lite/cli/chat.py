"""`neuralchat-lite chat`: a conversation, until the input ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from neuralchat_lite.cli import screen
from neuralchat_lite.cli.chat_commands import Session
from neuralchat_lite.cli.options import (
    GenerationGroup,
    LoadingGroup,
    MaxNewTokens,
    ModelArgument,
    ShowTimings,
    System,
    WeightsGroup,
    with_groups,
)
from neuralchat_lite.cli.replies import (
    load_draft,
    load_model,
    show,
    timings_text,
    warn_without_template,
)
from neuralchat_lite.cli.terminal import Typed, require_stdin, typed_lines, warn
from neuralchat_lite.errors import ConfigError, NeuralchatError, PromptError

if TYPE_CHECKING:
    from neuralchat_lite import Model, Piece

EXAMPLE = "Example: [bold]neuralchat-lite chat Intel/neural-chat-7b-v3-2[/bold]"

Answering = Callable[[], AbstractContextManager[Callable[[str], None] | None]]


@with_groups
def chat(
    model: ModelArgument,
    *,
    system: System = None,
    max_new_tokens: MaxNewTokens = 1024,
    generation: GenerationGroup,
    weights: WeightsGroup,
    loading: LoadingGroup,
    timings: ShowTimings = False,
) -> None:
    """Talk with a model, turn by turn.

    [bold]/help[/bold] shows the commands, [bold]/quit[/bold] or Ctrl-D leaves, Ctrl-C cancels an
    answer.
    """
    given = generation.options(max_new_tokens, temperature=1.0)
    require_stdin()
    loaded = load_model(model, weights, loading)
    warn_without_template(loaded)
    options = with_defaults(loaded, load_draft(loaded, given, loading))
    session = Session(model, loaded.conversation(system, **options))
    on_terminal = screen.at_terminal()
    with screen.left_as_it_was() if on_terminal else nullcontext():
        for typed in screen.typed_messages() if on_terminal else typed_lines():
            answer(session, typed, timings, screen.answering if on_terminal else plainly)
            if session.ended:
                return


def with_defaults(model: Model, given: dict[str, Any]) -> dict[str, Any]:
    """The options of a chat: those given, else what the model's makers recommend, which is said."""
    from neuralchat_lite.generation.defaults import FILE, chat_defaults
    from neuralchat_lite.generation.options import without_idle_filters

    try:
        theirs = chat_defaults(model.folder)
    except ConfigError as error:
        warn(f"{error}; what this file recommends is not used")
        theirs = {}
    if given.get("temperature") == 0:
        theirs = without_idle_filters({**theirs, "temperature": 0})
    used = {name: value for name, value in theirs.items() if name not in given}
    if used:
        said = ", ".join(f"{name} {value}" for name, value in used.items())
        warn(f"From the model's {FILE}: {said} (--temperature 0 and the like override it)")
    return {**used, **given}


@contextmanager
def plainly() -> Iterator[None]:
    """An answer in a file or a pipe: text as it comes."""
    yield None


def answer(session: Session, typed: Typed, timings: bool, answering: Answering) -> None:
    """Answer a message, or do what a command says. An error or Ctrl-C ends no session."""
    pieces: Iterator[Piece] | None = None
    try:
        said = typed.text
        pieces = session.run(said) if typed.is_command else session.conversation.stream(said)
        cost = None
        if pieces is not None:
            with answering() as put:
                cost = show(pieces, put)
    except KeyboardInterrupt:
        warn("\n(cancelled)")
    except PromptError as error:  # such as a full context
        warn(f"{error}; /reset starts a new conversation")
    except NeuralchatError as error:
        warn(str(error))
    except OSError as error:
        if error.filename is None:  # not a file of /save or /load
            raise
        warn(f"{error.filename}: {error.strerror}: check the path, permissions and space")
    else:
        if timings and cost:
            warn(timings_text(cost))
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:  # now, not when the garbage is collected: the turn is kept by then
            close()
