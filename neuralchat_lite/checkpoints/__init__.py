"""Unquantized weights: where they come from, and what identifies them.

A new kind of source is one file here and one row of SOURCES.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neuralchat_lite.checkpoints.source import Source

FOLDER = "folder"
# FOLDER, or the ending of a file's name -> the function that opens it as a `Source`. The function
# takes the path and, for a download, its (repository, commit).
SOURCES = {
    FOLDER: "neuralchat_lite.checkpoints.checkpoint:open_checkpoint",
    ".gguf": "neuralchat_lite.checkpoints.gguf.source:open_gguf",
}


def is_source_file(path: Path) -> bool:
    """Whether a file is a model by itself."""
    return path.suffix.lower() in SOURCES and path.is_file()


def open_source(path: Path, hub: tuple[str, str] | None = None) -> Source:
    """Open a folder, or a file of a kind that SOURCES lists.

    Raises CheckpointError or UnsupportedModelError.
    """
    kind = path.suffix.lower() if is_source_file(path) else FOLDER
    module, _, function = SOURCES[kind].partition(":")
    source: Source = getattr(import_module(module), function)(path, hub)
    return source
