"""`neuralchat-lite chat`: a conversation, a line per message, until the input ends."""

from __future__ import annotations

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
from neuralchat_lite.errors import PromptError

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

    [bold]/reset[/bold] forgets the conversation, [bold]/quit[/bold] or Ctrl-D leaves, Ctrl-C
    cancels an answer.
    """
    options = generation.options(max_new_tokens)
    require_stdin()
    loaded = load_model(model, weights, loading)
    warn_without_template(loaded)
    conversation = loaded.conversation(system, **options)
    commands = {"/reset": conversation.reset}
    for line in typed_lines():
        if line in ("/quit", "/exit"):
            return
        if line.startswith("/"):
            if line not in commands:
                warn(f"{line} is not a command, expected /reset or /quit")
                continue
            commands[line]()
            warn("The conversation is forgotten.")
            continue
        try:
            cost = show(conversation.stream(line))
        except KeyboardInterrupt:
            warn("\n(cancelled)")
        except PromptError as error:  # such as a full context; the session goes on
            warn(f"{error}; /reset starts a new conversation")
        else:
            if timings and cost:
                warn(timings_text(cost))
