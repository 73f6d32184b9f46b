"""The commands inside a chat: a table of what can be typed after a slash."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralchat_lite.cli.saved_chats import read_chat, save_chat
from neuralchat_lite.cli.terminal import unescaped, warn
from neuralchat_lite.errors import ConfigError

if TYPE_CHECKING:
    from neuralchat_lite import Conversation, Piece


@dataclass
class Session:
    """A chat that goes on.

    model: what the user called it
    ended: the user wants to leave
    """

    model: str
    conversation: Conversation
    ended: bool = False

    def run(self, line: str) -> Iterator[Piece] | None:
        """Do what a line with a slash says; the pieces of an answer, if it asks for one.

        Raises ConfigError for an unknown command, and what the command raises.
        """
        name, _, argument = line.partition(" ")
        if name not in COMMANDS:
            raise ConfigError(f"{name} is not a command, expected {', '.join(COMMANDS)}")
        return COMMANDS[name].run(self, argument.strip())


@dataclass(frozen=True)
class Command:
    """run: does it; argument: how /help calls it; help: one line"""

    run: Callable[[Session, str], Iterator[Piece] | None]
    argument: str
    help: str


def show_help(session: Session, argument: str) -> None:
    for name, command in COMMANDS.items():
        warn(f"{f'{name} {command.argument}':<19} {command.help}")
    warn('Alt-Enter begins a new line; """ begins and ends a message of several lines.')


def set_system(session: Session, argument: str) -> None:
    talk = session.conversation
    if not argument:
        said = "There is no system message." if talk.system is None else f"system: {talk.system}"
        warn(f"{said} (/system TEXT sets it, /system none takes it away)")
        return
    turns = [message for message in talk.messages if message["role"] != "system"]
    system = None if argument == "none" else argument
    first = [] if system is None else [{"role": "system", "content": system}]
    talk.resume([*first, *turns])
    warn("The system message is changed; what was said stays." if turns else "Done.")


def set_option(session: Session, argument: str) -> None:
    from neuralchat_lite.generation.options import FILTERS, GenerationOptions

    talk = session.conversation
    name, _, text = argument.replace("=", " ").partition(" ")
    if not name:
        names = [field.name for field in fields(talk.options)]  # asdict would copy a draft model
        warn(", ".join(f"{each} {getattr(talk.options, each)}" for each in names))
        return
    if not text.strip():
        raise ConfigError(f"/set {name} lacks a value: write it as /set {name} VALUE")
    given = {name: option_value(name, text.strip())}
    if name == "temperature" and given[name] == 0:  # the filters would have no effect
        given |= {each: getattr(GenerationOptions, each) for each in FILTERS}
    talk.options = talk.options.but(given)
    warn(f"{name} {getattr(talk.options, name)}")


def option_value(name: str, text: str) -> Any:
    if name == "stop":
        return () if text == "none" else (unescaped(text, "stop"),)
    words = {"none": None, "true": True, "false": False, "on": True, "off": False}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return json.loads(text)
    except ValueError:
        return text


def answer_again(session: Session, argument: str) -> Iterator[Piece]:
    talk = session.conversation
    before = talk.messages
    said = talk.undo()
    if said is None:
        raise ConfigError("there is no answer to give again: say something first")
    if talk.options.temperature == 0:
        warn("(With temperature 0 the answer is the same: /set temperature 0.7 samples.)")
    pieces = talk.stream(said)

    def or_as_before() -> Iterator[Piece]:
        try:
            yield from pieces
        finally:
            if len(talk.messages) < len(before):  # cancelled before the first word
                talk.messages = before

    return or_as_before()


def undo(session: Session, argument: str) -> None:
    said = session.conversation.undo()
    if said is None:
        raise ConfigError("there is no turn to take back: say something first")
    warn(f"Taken back: {said.splitlines()[0][:60]}")


def forget(session: Session, argument: str) -> None:
    session.conversation.reset()
    warn("The conversation is forgotten.")


def save(session: Session, argument: str) -> None:
    path = file_of(argument, "/save")
    save_chat(path, session.model, session.conversation.messages)
    warn(f"Saved to {path}")


def load(session: Session, argument: str) -> None:
    path = file_of(argument, "/load")
    model, messages = read_chat(path)
    session.conversation.resume(messages)
    if model != session.model:
        warn(f"This chat was with {model}; {session.model} goes on with it.")
    warn(f"{len(messages)} message{'s' * (len(messages) != 1)} from {path}")


def file_of(argument: str, command: str) -> Path:
    if not argument:
        raise ConfigError(f"{command} lacks a file: write it as {command} FILE")
    if "\0" in argument:
        raise ConfigError(
            f"{argument!r} cannot be the name of a file: leave out the zero character"
        )
    try:
        return Path(argument).expanduser()
    except RuntimeError as error:  # a user whom nobody knows
        raise ConfigError(f"{argument} cannot be a file ({error}): write the path out") from None


def show_context(session: Session, argument: str) -> None:
    talk = session.conversation
    used, all = talk.token_count(), talk.decoder.context_length
    turns = sum(message["role"] == "user" for message in talk.messages)
    said = f"{turns} turn{'s' * (turns != 1)}"
    warn(f"{said}; {used} of {all} tokens of the context are used ({used / all:.0%})")


def leave(session: Session, argument: str) -> None:
    session.ended = True


COMMANDS = {
    "/help": Command(show_help, "", "show this list"),
    "/system": Command(set_system, "[TEXT]", "show or change the system message"),
    "/set": Command(set_option, "[OPTION VALUE]", "show or change how tokens are chosen"),
    "/regen": Command(answer_again, "", "answer the last message again"),
    "/undo": Command(undo, "", "take back the last message and its answer"),
    "/reset": Command(forget, "", "forget the conversation; the system message stays"),
    "/save": Command(save, "FILE", "write the conversation to a file"),
    "/load": Command(load, "FILE", "go on with a conversation from a file"),
    "/context": Command(show_context, "", "show how full the context is"),
    "/quit": Command(leave, "", "leave, as Ctrl-D does"),
    "/exit": Command(leave, "", "the same"),
}
