"""What bodies have in common: no unknown fields, and unsupported ones are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from neuralchat_lite.server.errors import UNSUPPORTED
from neuralchat_lite.values import shown

Fraction = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class Body(Strict):
    """A whole body.

    unsupported: fields that the form has and this server does not -> (values of them that ask for
        nothing, and so pass; what to do instead)
    """

    unsupported: ClassVar[Mapping[str, tuple[tuple[Any, ...], str]]] = {}

    @model_validator(mode="before")
    @classmethod
    def check(cls, body: Any) -> Any:
        if not isinstance(body, Mapping):
            return body
        refuse_surrogates(body)
        kept = dict(body)
        for name, (idle, instead) in cls.unsupported.items():
            if name not in kept:
                continue
            value = kept.pop(name)
            if value is not None and not any(same(value, one) for one in idle):
                raise PydanticCustomError(
                    UNSUPPORTED,
                    "{said}",
                    {
                        "field": name,
                        "said": f"the field {name!r} is not supported, got {shown(value)}: "
                        f"{instead}",
                    },
                )
        return kept


def same(value: Any, other: Any) -> bool:
    return type(value) is type(other) and bool(value == other)


def refuse_surrogates(value: Any) -> None:
    """Raise ValueError for a text that is half a character, such as "\\ud800", which JSON can spell
    and no encoding can. Bodies are as deep as the JSON reader allows, so no recursion here."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            try:
                one.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    "the body has a text that is not valid Unicode, a lone surrogate at character "
                    f"{error.start} of it: send whole characters"
                ) from None
        elif isinstance(one, Mapping):
            waiting += [*one, *one.values()]
        elif isinstance(one, list):
            waiting += one


class StreamOptions(Strict):
    include_usage: bool | None = None


class Sampling(Body):
    """How tokens are chosen and where an answer ends: OpenAI's names, and vLLM's for the rest."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = Field(None, description="0 or -1: off")
    min_p: Fraction | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    stop: str | list[str] | None = None
    n: Annotated[int, Field(gt=0)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="of no effect")

    @model_validator(mode="after")
    def check_stream_options(self) -> Sampling:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream: true alone; leave it out")
        return self

    @property
    def with_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)
