"""Chat templates, rendered within limits of time, memory and text.

A template is a program from a model folder. It can loop for ever, or take all memory in one
operation that Ctrl-C does not end. So another process renders it, which is started at the first
template, kept, and replaced when a template has ended it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from neuralchat_lite.checkpoints import template_process
from neuralchat_lite.errors import PromptError
from neuralchat_lite.files.json_file import DEEPEST, LONGEST_NUMBER
from neuralchat_lite.values import shown

# Ordinary templates take milliseconds.
CPU_SECONDS = 1.0
# For a machine so busy that the CPU seconds do not come about.
PATIENCE_SECONDS = 60.0
REMEDY = "give token ids or a text, or replace the chat template"
LARGEST_INTEGER = 10**LONGEST_NUMBER
CONTINUED = "<neuralchat-lite-continues-here>"


class TemplateRefusal(PromptError):
    """A template has raised an error, such as for a role that it does not know.

    said: the error, with its type
    """

    def __init__(self, said: str) -> None:
        said = " ".join(said.split())
        super().__init__(f"the model's chat template refuses these messages ({said}): {REMEDY}")
        self.said = said


class Renderer:
    """The process that renders, and the pipes to it. Several threads take turns."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0
        self.finalizer: Any = None

    def render(self, template: str, variables: Mapping[str, Any]) -> str:
        """Raises PromptError when a limit is met, TemplateRefusal for the template's own errors."""
        return str(self.answer({"template": template, "variables": variables})["text"])

    def names(self, template: str) -> list[str]:
        """The variables that a template reads. Raises as `render` does."""
        return list(self.answer({"template": template})["names"])

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with self.turn:
            try:
                reply = self.ask(json.dumps(request).encode() + b"\n")
            except BaseException:  # also Ctrl-C: the process may still be at work
                self.end()
                raise
            if "limit" in reply:
                self.end()  # its memory goes with it
        if "error" in reply:
            raise TemplateRefusal("{}: {}".format(*reply["error"]))
        if "limit" in reply:
            raise PromptError(f"{LIMITS[reply['limit']]}: {REMEDY}")
        return reply

    def ask(self, request: bytes) -> dict[str, Any]:
        process = self.running()
        assert process.stdin and process.stdout
        received = bytearray()
        deadline = time.monotonic() + PATIENCE_SECONDS
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(request)
            process.stdin.flush()
        pipe = process.stdout.fileno()
        answered = select.poll()  # `select` has no descriptors from 1024 on
        answered.register(pipe, select.POLLIN)
        while not received.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not answered.poll(left * 1000):
                raise PromptError(f"{LIMITS['time']}: {REMEDY}")
            part = os.read(pipe, 1 << 20)
            if not part:
                raise died(process.wait())
            received += part
        reply: dict[str, Any] = json.loads(received)
        return reply

    def running(self) -> subprocess.Popen[bytes]:
        """The process, started unless it runs."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        assert self.process is not None
        return self.process

    def start(self) -> None:
        prepare_for_forks()
        # Without site-packages, but for the folders of the two packages that it needs.
        places = {str(Path(where(name)).parents[1]) for name in ("jinja2", "markupsafe")}
        script = str(Path(template_process.__file__))
        command = [sys.executable, "-I", "-S", script, str(CPU_SECONDS), *sorted(places)]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C at the terminal is ours alone
            )
        except OSError as error:
            raise PromptError(
                f"the process for chat templates cannot be started ({error.strerror}: "
                f"{sys.executable or 'no Python'}): close other programs, or give token ids or a "
                "text"
            ) from None
        self.owner = os.getpid()
        self.finalizer = weakref.finalize(self, end, self.process, self.owner)

    def end(self) -> None:
        if self.process is not None and self.owner == os.getpid():
            self.finalizer()
        self.process = None


LIMITS = {
    "time": f"the model's chat template takes more than {CPU_SECONDS:g} s of CPU time",
    "memory": "the model's chat template takes more than "
    f"{template_process.BASE_BYTES >> 20} MB of memory",
    "text": "the model's chat template makes more than "
    f"{template_process.BASE_TEXT >> 20} MB of text",
}


def where(package: str) -> str:
    """A package's __init__.py."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None, package
    return spec.origin


def died(status: int) -> PromptError:
    if status == -signal.SIGPROF:
        return PromptError(f"{LIMITS['time']}: {REMEDY}")
    return PromptError(
        f"the model's chat template ended the process that renders it (status {status}): {REMEDY}"
    )


def end(process: subprocess.Popen[bytes], owner: int) -> None:
    """Does nothing in a fork of the owner."""
    if os.getpid() != owner:
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


RENDERER = Renderer()


def after_fork() -> None:
    """The child of a fork starts a process of its own: the pipes of its parent's are shared, and
    the lock may be held by a thread that is not there."""
    global RENDERER
    RENDERER = Renderer()


@cache
def prepare_for_forks() -> None:
    os.register_at_fork(after_in_child=after_fork)


def template_of(
    tokenizer: Any, tools: Sequence[Any] | None = None, chat_template: str | None = None
) -> str:
    """The template that a tokenizer takes. Raises TemplateRefusal when there is none."""
    try:
        return str(tokenizer.get_chat_template(chat_template, tools))
    except (ValueError, TypeError) as error:  # none, or several and none of them the default
        raise TemplateRefusal(" ".join(str(error).split())) from None


def variables_of(tokenizer: Any, tools: Sequence[Any] | None = None) -> list[str]:
    """The variables that a tokenizer's template reads, and which it does not set itself.

    Raises as `render_messages` does, for a template that cannot be parsed.
    """
    return RENDERER.names(template_of(tokenizer, tools))


def render_messages(
    tokenizer: Any,
    messages: Sequence[Any],
    *,
    tools: Sequence[Any] | None = None,
    documents: Any = None,
    chat_template: str | None = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool | str = False,
    **variables: Any,
) -> str:
    """The text of messages by a tokenizer's template, as its `apply_chat_template` makes it.

    Raises PromptError when a limit is met, TemplateRefusal for the template's own errors.
    """
    template = template_of(tokenizer, tools, chat_template)
    given = getattr(messages, "messages", messages)
    if isinstance(given, str | bytes) or not isinstance(given, Sequence):
        raise PromptError(f"expected a list of messages, got {type(given).__name__}")
    chat = [without_none(message) for message in as_json(list(given))]
    if continue_final_message:
        if not chat:
            raise PromptError("there is no message to be continued: give one")
        mark_end(chat[-1], "content" if continue_final_message is True else continue_final_message)
    text = RENDERER.render(
        template,
        as_json(
            {
                **tokenizer.special_tokens_map,
                **variables,
                "messages": chat,
                "tools": None if tools is None else schemas(tools),
                "documents": documents,
                "add_generation_prompt": add_generation_prompt,
            }
        ),
    )
    return before_mark(text) if continue_final_message else text


def as_json(value: Any, deeper: int = DEEPEST) -> Any:
    """A value as JSON has it; what JSON does not have becomes the name of its type.

    Raises PromptError for what the files of a model may not hold either: deep nesting, such as of a
    value within itself, and integers that are too long.
    """
    if isinstance(value, int) and abs(value) >= LARGEST_INTEGER:
        raise PromptError(
            f"messages have integers of at most {LONGEST_NUMBER} digits: give a longer one as text"
        )
    if value is None or isinstance(value, bool | str | int | float):
        return value
    if deeper == 0:
        raise PromptError(
            f"messages, tools and options of a chat template are nested at most {DEEPEST} deep, "
            "and never within themselves: give a part of them as text"
        )
    if isinstance(value, Mapping):
        return {str(key): as_json(entry, deeper - 1) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(entry, deeper - 1) for entry in value]
    if callable(getattr(value, "model_dump", None)):  # of pydantic
        return as_json(value.model_dump(), deeper - 1)
    # Special tokens may be AddedToken objects.
    return getattr(value, "content", None) or f"<{type(value).__name__}>"


def without_none(message: Any) -> dict[str, Any]:
    """Clients send "tool_calls": null, and templates ask whether the key is there."""
    if not isinstance(message, dict):
        raise PromptError(
            f"a message must be {{'role': ..., 'content': ...}}, got {shown(message)}"
        )
    return {key: value for key, value in message.items() if value is not None}


def schemas(tools: Any) -> list[Any]:
    """Tools as templates want them: JSON schemas, made of a function's types and docstring."""
    from transformers.utils.chat_template_utils import get_json_schema

    if not isinstance(tools, list | tuple):
        raise PromptError(f"tools must be a list, got {type(tools).__name__}")
    found = []
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            try:
                tool = get_json_schema(tool)
            # It has errors of its own, and those of whatever it asks about types.
            except Exception as error:
                why = " ".join(str(error).split())[:200]
                raise PromptError(
                    f"tool {index} has no JSON schema ({why}): give the schema, or a function with "
                    "types and a docstring that has a line for each argument"
                ) from error
        found.append(tool)
    return found


def mark_end(message: dict[str, Any], key: str) -> None:
    content = message.get(key)
    if isinstance(content, list):
        texts = [block for block in content if isinstance(block, dict) and "text" in block]
        message, key, content = (texts[-1], "text", texts[-1]["text"]) if texts else ({}, "", None)
    if not isinstance(content, str):
        raise PromptError("the last message has no text to be continued: give it a content")
    message[key] = f"{content}{CONTINUED} "


def before_mark(text: str) -> str:
    before, mark, after = text.rpartition(CONTINUED)
    if not mark:
        raise PromptError(
            "the chat template leaves out the end of the last message, which is to be continued: "
            "leave continue_final_message out"
        )
    # Where the template trims contents, the end of this one is trimmed as well.
    return before if after.startswith(" ") else before.rstrip()
