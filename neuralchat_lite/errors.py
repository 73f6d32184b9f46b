"""The exceptions of this library. Every message gives the value, the rule and the remedy."""

from __future__ import annotations


class NeuralchatError(Exception):
    """Base of every error that this library raises about its input."""


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


class HubError(NeuralchatError, OSError):
    """A model name could not be resolved to files."""


class EngineError(NeuralchatError, RuntimeError):
    """An engine in another environment is not installed, reports an error, or has crashed."""
