"""`neuralchat-lite chat`: a conversation, until the input ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
from neuralchat_lite.cli.replies import load_model, show, timings_text, warn_without_template
from neuralchat_lite.cli.terminal import require_stdin, typed_lines, warn
from neuralchat_lite.errors import ConfigError, NeuralchatError, PromptError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from neuralchat_lite import Model, Piece

EXAMPLE = "Example: [bold]neuralchat-lite chat Intel/neural-chat-7b-v3-2[/bold]"


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
    options = with_defaults(loaded, given)
    session = Session(model, loaded.conversation(system, **options))
    for line in typed_lines():
        answer(session, line, timings)
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


def answer(session: Session, line: str, timings: bool) -> None:
    """Answer a message, or do what a command says. An error or Ctrl-C ends no session."""
    pieces: Iterator[Piece] | None = None
    try:
        pieces = session.run(line) if line.startswith("/") else session.conversation.stream(line)
        cost = show(pieces) if pieces is not None else None
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
