"""`neuralchat-lite generate`: continue one text, or answer one message."""

from __future__ import annotations

from typing import Annotated

from neuralchat_lite.cli.options import (
    TEXT,
    GenerationGroup,
    LoadingGroup,
    MaxNewTokens,
    ModelArgument,
    ShowTimings,
    System,
    WeightsGroup,
    option,
    with_groups,
)
from neuralchat_lite.cli.replies import load_model, show, timings_text, warn_without_template
from neuralchat_lite.cli.terminal import read_stdin, warn, write
from neuralchat_lite.errors import ConfigError

EXAMPLE = "Example: [bold]neuralchat-lite generate ./stories260K -p 'Once upon a time'[/bold]"


@with_groups
def generate(
    model: ModelArgument,
    prompt: Annotated[str, option(TEXT, "The prompt; - reads it from stdin.", "-p", "--prompt")],
    *,
    max_new_tokens: MaxNewTokens = 256,
    generation: GenerationGroup,
    chat: Annotated[bool, option(TEXT, "Send the prompt as a chat message.", "--chat")] = False,
    system: System = None,
    weights: WeightsGroup,
    loading: LoadingGroup,
    timings: ShowTimings = False,
) -> None:
    """Continue a text, or answer a message with [bold]--chat[/bold].

    A text is printed with its continuation, so that it reads as a whole; an answer alone.
    """
    options = generation.options(max_new_tokens)
    if system is not None and not chat:
        raise ConfigError(f"--system {system!r} is part of a chat: give --chat too")
    text = read_stdin() if prompt == "-" else prompt
    loaded = load_model(model, weights, loading)
    messages = [{"role": "system", "content": system}] if system is not None else []
    if chat:
        warn_without_template(loaded)
        pieces = loaded.stream([*messages, {"role": "user", "content": text}], **options)
    else:
        pieces = loaded.stream(text, **options)
        write(text)
    cost = show(pieces)
    if timings and cost:
        warn(timings_text(cost))
