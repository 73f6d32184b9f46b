"""The files beside the weights of a model or an adapter: small regular files of that folder.

They are copied into quantized and merged folders, which people publish. A link could make any file
of this machine one of them, so links may only stay in their folder or lead to the hub's store.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.files.unchanged import SMALL_LIMIT, UnchangedFile


def open_sidecars(folder: Path, names: Sequence[str]) -> tuple[UnchangedFile, ...]:
    """Those of these files that a folder has, opened.

    Raises CheckpointError for what is no regular file or too large, for a link that leads nowhere,
    and for one that leads out of the folder and not into the hub's store.
    """
    found = [folder / name for name in names if os.path.lexists(folder / name)]
    for path in found:
        require_inside(path)
    return tuple(UnchangedFile(path, SMALL_LIMIT) for path in found)


def require_inside(path: Path) -> None:
    """Raise CheckpointError when a file is a link that leads out of its folder."""
    if not path.is_symlink():
        return
    try:
        target = path.resolve()
        if not target.exists():
            return  # refused where it is opened
        inside = any(target.is_relative_to(root) for root in roots(path.parent.resolve()))
    except (OSError, RuntimeError) as error:  # a circle of links
        raise CheckpointError(
            f"{path} is a link that cannot be followed ({error}): put the file in its place"
        ) from None
    if not inside:
        raise CheckpointError(
            f"{path} is a link to {target}, outside of the folder, and files beside the weights "
            "are copied into quantized and merged folders: put a copy of the file in its place"
        )


def roots(folder: Path) -> list[Path]:
    """Where links of a folder may lead. The folder has no links in its own path; a link in the
    place of the store `blobs` leads out of it."""
    from huggingface_hub import constants  # only links need it, and it takes a while

    stores = [Path(constants.HF_HUB_CACHE).resolve()]
    if folder.parent.name == "snapshots":
        stores.append(folder.parents[1] / "blobs")
    return [folder, *stores]
