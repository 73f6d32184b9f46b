"""Where each engine runs: in the harness' own Python, or in an environment from pinned files.

The pinned files are in `requirements/`. Those of IPEX and ITREX belong to the library, whose
`neuralchat-lite engines setup` makes the same environments.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.engines.table import ENGINES, Variant
from neuralchat_lite.environments.environment import (
    Environment,
    engine_environment,
    environments_root,
)

REQUIREMENTS = Path(__file__).parent / "requirements"
PRODUCT = ("ipex", "itrex")


def environment_of(engine: str) -> Environment | None:
    """The environment of an engine; None where that is the harness' own Python."""
    name = ENGINES[engine].environment
    if name is None:
        return None
    if name in PRODUCT:
        return engine_environment(name)
    command = f"python -m benchmarks setup {engine}"
    return Environment.described(name, REQUIREMENTS, environments_root() / "benchmarks", command)


def python_of(engine: str) -> Path:
    """Its interpreter. Raises EngineError with the remedy when the environment is not ready."""
    environment = environment_of(engine)
    if environment is None:
        return Path(sys.executable)
    environment.require_ready()
    return environment.python


def is_ready(engine: str) -> bool:
    environment = environment_of(engine)
    return environment is None or environment.state() == "ready"


def installed(variants: Sequence[Variant], say: Callable[[str], None]) -> list[Variant]:
    """Those whose engines are installed; `say` gets a line for each engine that is left out."""
    ready = {name: is_ready(name) for name in dict.fromkeys(one.engine for one in variants)}
    for name in (name for name, there in ready.items() if not there):
        say(f"{name} is not installed and left out: `python -m benchmarks setup {name}`")
    return [variant for variant in variants if ready[variant.engine]]
