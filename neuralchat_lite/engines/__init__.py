"""Whole-model engines behind one protocol, chosen by name.

`generation` only needs a model's decoder, so an engine is an object that has one. "native" is the
engine of this library. Engines of other packages are references and serve for comparison.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.values import shown

if TYPE_CHECKING:
    from neuralchat_lite.engines.engine import Engine, Request

NATIVE = "native"
# Name -> the function that opens it for a `Request`. `loading` opens "native".
ENGINES = {
    "torch": "neuralchat_lite.engines.reference:open_reference",
    "ipex": "neuralchat_lite.engines.ipex:open_ipex",
    "itrex": "neuralchat_lite.engines.itrex:open_itrex",
}
NAMES = (NATIVE, *ENGINES)


def check_name(name: Any) -> None:
    """Raises ConfigError for an unknown name."""
    if name not in NAMES:
        raise ConfigError(f"engine must be one of {', '.join(NAMES)}, got {shown(name)}")


def open_engine(name: str, request: Request) -> Engine:
    """Load a checkpoint into an engine other than the native one.

    name: a key of ENGINES; `check_name` is for names that users give
    Raises ConfigError, EngineError or CheckpointError.
    """
    module, _, function = ENGINES[name].partition(":")
    engine: Engine = getattr(import_module(module), function)(request)
    return engine
