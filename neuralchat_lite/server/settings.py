"""What a server allows, and to whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.values import shown

USUAL_TEMPERATURE = 1.0  # OpenAI's
POSITIVE = (
    "max_queue",
    "max_batch",
    "max_body_bytes",
    "max_messages",
    "max_answers",
    "request_timeout",
    "body_timeout",
    "write_timeout",
    "ping_interval",
)


@dataclass(frozen=True)
class Settings:
    """Raises ConfigError for a value that is not allowed. Times are in seconds.

    api_keys: of which a request must bring one; none: everybody may ask
    cors_origins: web pages of these origins may ask
    allowed_hosts: without keys, requests must reach the server by its address, a private name or
        one of these (see `hosts`); None: by any
    max_queue: answers of one model that may wait; more are refused with 429
    max_batch: answers of one model that are computed together
    request_timeout: from a request's arrival to the end of its answer
    max_body_bytes: of a request
    max_messages: of a conversation, and texts of a list
    max_answers: to one request: prompts x n
    body_timeout: in which a request's body must arrive
    write_timeout: in which a client must take a part of its answer
    ping_interval: between two signs of life while nothing else is sent
    sampling: options of every answer, beneath the request's own and above the model's
    """

    api_keys: tuple[str, ...] = field(default=(), repr=False)
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] | None = None
    max_queue: int = 256
    max_batch: int = 64
    request_timeout: float = 600.0
    max_body_bytes: int = 8 * 2**20
    max_messages: int = 2048
    max_answers: int = 128
    body_timeout: float = 30.0
    write_timeout: float = 60.0
    ping_interval: float = 5.0
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in POSITIVE:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ConfigError(f"{name} must be a number > 0, got {shown(value)}")
        for key in self.api_keys:
            # What a header can carry: no spaces at the ends, no control characters.
            if not key or key != key.strip() or not key.isascii() or not key.isprintable():
                raise ConfigError(
                    "an API key must be printable ASCII without spaces around it: give another"
                )
        GenerationOptions.of({"temperature": USUAL_TEMPERATURE, **self.sampling})
