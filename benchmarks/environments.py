"""Where each engine runs: the harness' own Python, or an environment from pinned files."""

from __future__ import annotations

import sys
from pathlib import Path


def python_of(environment: str | None) -> Path:
    assert environment is None
    return Path(sys.executable)
