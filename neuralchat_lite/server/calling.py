"""What a request of any form says of tools, and what comes of it: variables of the chat template, a
grammar, and the reader of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neuralchat_lite.chat.answers import AnswerParser
from neuralchat_lite.chat.tool_choice import forced_call, free_calls
from neuralchat_lite.checkpoints.chat_template import TemplateRefusal, render_messages, variables_of
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.server.errors import bad_request

MARKS = 8  # tokens at the end of a prompt, which may have begun the reasoning


def refuse_lost_calls(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] | None
) -> None:
    """Raise RequestError when the chat template leaves calls of earlier turns out, and so would
    give the model results of calls that it has not made."""
    if not any(message.get("tool_calls") for message in messages):
        return
    if tokenizer.chat_template is None or not reads_calls(tokenizer, messages, variables or {}):
        raise bad_request(
            "messages have calls of tools, and the model's chat template leaves them out: take a "
            "model that was trained to call tools, or say in texts what was called",
            "messages",
        )


def reads_calls(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
) -> bool:
    without = [{k: v for k, v in message.items() if k != "tool_calls"} for message in messages]
    try:
        texts = [
            render_messages(tokenizer, list(each), **{**variables, "add_generation_prompt": True})
            for each in (messages, without)
        ]
    except TemplateRefusal:  # it looks at them, or refuses the messages for another reason
        return True
    return texts[0] != texts[1]


@dataclass(frozen=True)
class Calling:
    """tools: in the form that templates read; empty where nothing may be called
    required: whether there must be a call
    name: of the one tool that must be called
    several: whether calls may follow each other; None where the request does not say
    """

    tools: Sequence[dict[str, Any]] = ()
    required: bool = False
    name: str | None = None
    several: bool | None = None

    @classmethod
    def of(
        cls,
        tools: Sequence[dict[str, Any]] | None,
        choice: str | None = None,
        name: str | None = None,
        several: bool | None = None,
    ) -> Calling:
        """choice: auto, none or required

        Raises RequestError where a call is asked for and there are no tools.
        """
        required = choice == "required" or name is not None
        if not tools and required:
            raise bad_request(
                "tool_choice asks for a call, and there are no tools: give some", "tools"
            )
        if choice == "none":
            return cls()
        return cls(tuple(tools or ()), required, name, several)

    @property
    def many(self) -> bool:
        """Whether calls may follow each other. One that must come is alone, unless more are asked
        for."""
        if self.name is not None:
            return False
        return not self.required if self.several is None else self.several

    def variables(
        self, tokenizer: Any, given: Mapping[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """Of the chat template. Raises RequestError for one that does not read tools."""
        if not self.tools:
            return dict(given) if given else None
        tools = list(self.tools)
        if tokenizer.chat_template is None or "tools" not in variables_of(tokenizer, tools):
            raise bad_request(
                "the model's chat template does not read tools: take a model that was trained to "
                "call them, or leave them out",
                "tools",
            )
        return {**(given or {}), "tools": tools}

    def form(self, tokenizer: Any, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The option that gives the answer its form.

        given: the one that the request asks for itself

        Raises RequestError for two of them.
        """
        grammar = self.grammar(tokenizer)
        if given and grammar:
            raise bad_request(
                f"tool_choice and {next(iter(given))} each give the answer a form: send one of "
                "them",
                "tool_choice",
            )
        return dict(given) if given else {"grammar": grammar} if grammar else {}

    def grammar(self, tokenizer: Any) -> str | None:
        """What holds the answer to what was asked of its calls; None where the model is free.

        Raises RequestError for what the model's form of calls does not allow.
        """
        strict = any(tool["function"].get("strict") for tool in self.tools)
        try:
            if self.required:
                return forced_call(tokenizer, self.tools, self.name, several=self.many)
            if self.tools and (strict or self.several is False):
                return free_calls(tokenizer, self.tools, several=self.many)
        except ConfigError as error:
            raise bad_request(str(error), "tool_choice") from None
        return None

    def reader(self, tokenizer: Any, prompt_ids: Sequence[int], formed: bool) -> AnswerParser:
        """What takes the answer apart.

        formed: whether the request has given it a form, which has no marks
        """
        if formed:
            return AnswerParser(tokenizer, None, None)
        before = tokenizer.decode(list(prompt_ids[-MARKS:]), skip_special_tokens=False)
        return AnswerParser.of(tokenizer, self.tools, before)
