"""The body of /v1/chat/completions, and its messages."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from neuralchat_lite.server.errors import bad_request
from neuralchat_lite.server.requests.fields import Sampling, Strict
from neuralchat_lite.server.requests.forms import Formed
from neuralchat_lite.server.requests.tools import WithTools


class Function(Strict):
    name: str
    arguments: str


class ToolCall(Strict):
    id: str
    type: Literal["function"] = "function"
    function: Function
    index: int | None = None


class ChatMessage(Strict):
    """Which roles there may be, and in which order, is the chat template's to say."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None

    def as_message(self) -> dict[str, Any]:
        """In the form that chat templates read: arguments as objects, no fields without value, and
        a text beside calls."""
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": self.content}
        if self.content is None and self.tool_calls:
            message["content"] = ""  # templates of Qwen3 and others look into it
        for name in ("name", "tool_call_id", "reasoning_content"):
            if (value := getattr(self, name)) is not None:
                message[name] = value
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {
                        "name": call.function.name,
                        "arguments": arguments_of(call.function),
                    },
                }
                for call in self.tool_calls
            ]
        return message


def arguments_of(function: Function, field: str = "messages") -> Any:
    try:
        found = json.loads(function.arguments or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise bad_request(
            f"the arguments of a call of {function.name!r} must be a JSON object in a text: "
            "send what the model has sent",
            field,
        )
    return found


class ChatRequest(Sampling, Formed, WithTools):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(gt=0)] | None = None
    max_tokens: Annotated[int, Field(gt=0)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = Field(
        None, description="the last message is the assistant's, and the model goes on with it"
    )
    add_generation_prompt: bool | None = Field(
        None, description="of no effect: an answer begins, or the last message goes on"
    )
    metadata: dict[str, str] | None = Field(None, description="of no effect")
    safety_identifier: str | None = Field(None, description="of no effect")
    prompt_cache_key: str | None = Field(None, description="of no effect")

    unsupported: ClassVar = {
        "functions": (([],), "use tools"),
        "function_call": (("none", "auto"), "use tool_choice"),
        "audio": ((), "models here read and write text alone"),
        "modalities": ((["text"],), "models here read and write text alone"),
        "prediction": ((), "leave it out"),
        "reasoning_effort": ((), "say it in chat_template_kwargs, if the template reads it"),
        "verbosity": ((), "leave it out"),
        "web_search_options": ((), "leave it out"),
        "store": ((False,), "nothing is kept here"),
        "service_tier": (("auto", "default"), "there is one tier"),
        "best_of": ((1,), "use n"),
        "echo": ((False,), "the answer begins with its own first word; use /v1/completions"),
    }

    def limit(self) -> int | None:
        new, old = self.max_completion_tokens, self.max_tokens
        if new and old and new != old:
            raise bad_request(
                f"max_tokens is {old} and max_completion_tokens is {new}: give the second alone",
                "max_tokens",
            )
        return new or old

    def prompt(self) -> tuple[list[dict[str, Any]], str]:
        """The messages, and how the answer begins."""
        messages = [message.as_message() for message in self.messages]
        going_on = bool(self.continue_final_message)
        if self.add_generation_prompt is going_on:
            raise bad_request(
                "add_generation_prompt and continue_final_message must be opposites: an answer "
                "begins, or the last message is gone on with",
                "add_generation_prompt",
            )
        if not going_on:
            if messages[-1]["role"] == "assistant":
                raise bad_request(
                    "the last message is the assistant's: leave it out, or send "
                    "continue_final_message: true to have the model go on with it",
                    "messages",
                )
            return messages, ""
        last = messages.pop()
        if last["role"] != "assistant" or not isinstance(last.get("content"), str):
            raise bad_request(
                "continue_final_message needs a last message of the assistant with a text as "
                f"content, got one of {last['role']!r}: leave it out",
                "continue_final_message",
            )
        if not messages:
            raise bad_request("there is no message before the last one: add the user's", "messages")
        return messages, last["content"]
