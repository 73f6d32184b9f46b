"""The exceptions of this library. Every message gives the value, the rule and the remedy."""

from __future__ import annotations

import re
from typing import ClassVar

# C0 and C1 controls except newline and tab, which steer a terminal, and the controls that reorder
# the text beside them (bidirectional embeddings, overrides and isolates).
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""A text whose control characters are spelled out (`\x1b`), so that printing it does nothing
    but show it."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class NeuralchatError(Exception):
    """Base of every error that this library raises about its input.

    A message may quote names and values from a model's files, of any length. Its text has no
    control characters, and the middle of a very long one is left out: the remedy comes last.
    """

    longest: ClassVar[int] = 1000  # characters

    def __str__(self) -> str:
        text = visible(super().__str__())
        if len(text) <= self.longest:
            return text
        begin, end = self.longest * 2 // 3, self.longest // 4
        return f"{text[:begin]} [...] {text[-end:]}"


class ConfigError(NeuralchatError, ValueError):
    """An option has an invalid value."""


class CheckpointError(NeuralchatError, ValueError):
    """A model folder is incomplete, damaged or inconsistent."""


class UnsupportedModelError(CheckpointError):
    """The model is complete, but this library does not support its kind."""


class CacheError(NeuralchatError, OSError):
    """A quantized folder or the cache cannot be read or written."""


class PromptError(NeuralchatError, ValueError):
    """A prompt is empty, too long or of the wrong form."""


class ContextError(PromptError):
    """A prompt has more tokens than the context."""


class HubError(NeuralchatError, OSError):
    """A model name could not be resolved to files."""


class EngineError(NeuralchatError, RuntimeError):
    """An engine in another environment is not installed, reports an error, or has crashed."""

    longest = 10_000  # it quotes the last lines of a log


class ResourceError(NeuralchatError, MemoryError):
    """The system refused memory, a thread or a process."""
