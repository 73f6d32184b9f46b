"""`neuralchat-lite generate`: answer one message, or continue one text."""

from __future__ import annotations

from typing import Annotated

import typer

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
from neuralchat_lite.cli.replies import (
    load_draft,
    load_model,
    show,
    timings_text,
    warn_without_template,
)
from neuralchat_lite.cli.terminal import read_stdin, unescaped, warn, without_file_marks, write
from neuralchat_lite.errors import ConfigError, PromptError

EXAMPLE = (
    "Example: [bold]neuralchat-lite generate Intel/neural-chat-7b-v3-2 'Why is the sky blue?'"
    "[/bold]"
)

AS_MESSAGE = (
    "The prompt is a message in the model's chat template (--raw continues it as plain text)."
)
AS_ASKED = "The prompt is continued as plain text, without the model's chat template."
WITHOUT_TEMPLATE = (
    "The prompt is continued as plain text: the model has no chat template (--chat sends a "
    "message in neural-chat's form)."
)


@with_groups
def generate(
    model: ModelArgument,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The prompt; - reads it from stdin.")
    ] = None,
    *,
    prompt_option: Annotated[
        str | None, option(TEXT, "The prompt, as an option.", "-p", "--prompt")
    ] = None,
    max_new_tokens: MaxNewTokens = 256,
    generation: GenerationGroup,
    chat: Annotated[
        bool, option(TEXT, "Send a message, also to a model without a chat template.", "--chat")
    ] = False,
    raw: Annotated[
        bool, option(TEXT, "Continue plain text, without the model's chat template.", "--raw")
    ] = False,
    system: System = None,
    prefill: Annotated[
        str | None, option(TEXT, "How the answer to a message begins; it is printed too.")
    ] = None,
    weights: WeightsGroup,
    loading: LoadingGroup,
    timings: ShowTimings = False,
) -> None:
    """Answer a message, or continue a text.

    A model with a chat template is sent a message, and its answer is printed. For a model without
    one, and with [bold]--raw[/bold], the prompt is printed with its continuation.
    """
    options = generation.options(max_new_tokens)
    if prefill is not None:
        options |= {"prefill": unescaped(prefill, "--prefill"), "echo": True}
    given = the_prompt(prompt, prompt_option)
    refuse_both_ways(chat, raw, system, prefill)
    text = read_stdin() if given == "-" else given
    loaded = load_model(model, weights, loading)
    options = load_draft(loaded, options, loading)
    has_template = loaded.tokenizer.chat_template is not None
    if chat or (has_template and not raw):
        if has_template:
            warn(AS_MESSAGE)
        warn_without_template(loaded)
        if given == "-":
            text = without_file_marks(text)
        messages = [{"role": "system", "content": system}] if system is not None else []
        pieces = loaded.stream([*messages, {"role": "user", "content": text}], **options)
    else:
        for name, part in (("--system", system), ("--prefill", prefill)):
            if part is not None:
                raise ConfigError(
                    f"{name} {part!r} is part of a chat, and this model has no chat template: "
                    "give --chat too"
                )
        warn(AS_ASKED if has_template else WITHOUT_TEMPLATE)
        pieces = loaded.stream(text, **options)
        write(text)
    cost = show(pieces)
    if timings and cost:
        warn(timings_text(cost))


def the_prompt(argument: str | None, option: str | None) -> str:
    given = [text for text in (argument, option) if text is not None]
    if len(given) == 2:
        raise ConfigError(
            "the prompt was given twice, as PROMPT and with -p: leave one of them out"
        )
    if not given:
        raise PromptError("there is no prompt: give it after the model, or - to read it from stdin")
    return given[0]


def refuse_both_ways(chat: bool, raw: bool, system: str | None, prefill: str | None) -> None:
    if raw and chat:
        raise ConfigError("--raw and --chat are opposites: give one of them")
    for name, text in (("--system", system), ("--prefill", prefill)):
        if raw and text is not None:
            raise ConfigError(f"{name} {text!r} is part of a chat: leave --raw or {name} out")
