"""What can go wrong, by name. Every message gives the value, the rule and the remedy."""

from __future__ import annotations


class NeuralchatError(Exception):
    """Base of every error that this library raises about its input."""


class ConfigError(NeuralchatError, ValueError):
    """An option has a value that it cannot have."""


class CheckpointError(NeuralchatError, ValueError):
    """A model folder is incomplete, damaged or inconsistent."""


class UnsupportedModelError(CheckpointError):
    """The model is whole, but of a kind that this library does not run."""


class CacheError(NeuralchatError, OSError):
    """A quantized folder or the cache cannot be read or written."""


class PromptError(NeuralchatError, ValueError):
    """A prompt is empty, too long or of the wrong form."""


class HubError(NeuralchatError, OSError):
    """A model name could not be resolved to files."""


class EngineError(NeuralchatError, RuntimeError):
    """An engine in another environment is missing, refuses, or has died."""


class ResourceError(NeuralchatError, MemoryError):
    """The system refused memory, a thread or a process."""
