"""The files beside the weights of a model or an adapter: which of them are there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def sidecars_in(folder: Path, names: Sequence[str]) -> list[Path]:
    """Those of these names that a folder has; links that lead nowhere are among them, and are
    refused where they are opened."""
    return [folder / name for name in names if os.path.lexists(folder / name)]
