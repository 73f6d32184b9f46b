"""The bodies of /tokenize, /detokenize, /apply-template and /v1/embeddings.

/tokenize and /detokenize take vLLM's fields and llama.cpp's.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from neuralchat_lite.server.calling import Calling
from neuralchat_lite.server.requests.chat import ChatMessage
from neuralchat_lite.server.requests.fields import Body
from neuralchat_lite.server.requests.tools import Tool, tools_of

OF_MESSAGES = ("add_generation_prompt", "chat_template_kwargs", "tools")


class TokenizeRequest(Body):
    model: str | None = None
    prompt: str | None = Field(None, description="a text, with the tokenizer's special tokens")
    content: str | None = Field(None, description="a text, without them, as llama.cpp has it")
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    tools: list[Tool] | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool = False
    with_pieces: bool = False

    @model_validator(mode="after")
    def check_one(self) -> TokenizeRequest:
        given = [name for name in ("prompt", "content", "messages") if self.named(name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of prompt, content and messages, got {given or 'none'}")
        idle = [name for name in OF_MESSAGES if name in self.model_fields_set]
        if self.messages is None and idle:
            raise ValueError(f"{' and '.join(idle)} would have no effect without messages")
        if None not in (self.add_special_tokens, self.add_special):
            raise ValueError("add_special_tokens and add_special say the same: give one of them")
        if self.messages is not None and (self.add_special_tokens or self.add_special):
            raise ValueError(
                "messages have the special tokens that the chat template writes: leave "
                "add_special_tokens out"
            )
        return self

    def named(self, name: str) -> Any:
        return getattr(self, name)

    @property
    def special(self) -> bool:
        for value in (self.add_special_tokens, self.add_special):
            if value is not None:
                return value
        return self.prompt is not None

    def variables(self, tokenizer: Any) -> dict[str, Any] | None:
        return Calling.of(tools_of(self.tools)).variables(tokenizer, self.chat_template_kwargs)


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: list[int]


class TemplateRequest(Body):
    model: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    tools: list[Tool] | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None

    def variables(self, tokenizer: Any) -> dict[str, Any] | None:
        return Calling.of(tools_of(self.tools)).variables(tokenizer, self.chat_template_kwargs)


class EmbeddingRequest(Body):
    model: str | None = None
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    pooling: Literal["mean", "last"] = Field("mean", description="of the tokens of a text")
    normalize: bool = Field(True, description="to the length 1")
    user: str | None = Field(None, description="of no effect")

    unsupported: ClassVar = {"dimensions": ((), "vectors have the model's own size")}
