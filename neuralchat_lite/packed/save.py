"""Saving a copy of a quantized folder."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

from neuralchat_lite.checkpoints.kinds import is_packed
from neuralchat_lite.checkpoints.sidecars import require_inside
from neuralchat_lite.errors import CacheError
from neuralchat_lite.files.folder import (
    TEMPORARY,
    copy_flushed,
    flush_folder,
    unwritable,
    whole_folder,
    write_flushed,
)
from neuralchat_lite.files.names import INDEX, MANIFEST, QUANTIZATION, SIDECARS, WEIGHTS
from neuralchat_lite.files.unchanged import UnchangedFile
from neuralchat_lite.packed.foreign import marked
from neuralchat_lite.packed.manifest import STAMP, read_manifest, released
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig

KEPT = tuple(name for name in SIDECARS if name != "config.json")
MODEL_FILES = frozenset(("config.json", INDEX, MANIFEST, QUANTIZATION, WEIGHTS))
WEIGHT_ENDINGS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")


def save_copy(source: Path, config: WeightOnlyQuantConfig, target: Path) -> Path:
    """Copy a quantized folder. `manifest.released` gives the manifest of the copy.

    config: the configuration to store in the copy
    An earlier copy in `target` is replaced, which may be `source` itself. A tokenizer and other
    files there stay. Raises CacheError when `target` holds another model, or cannot be written.
    """
    with writing(target):
        if target.exists() and not target.is_dir():
            raise CacheError(f"{target} is a file: choose another folder, or remove it")
        theirs = {path.name for path in target.iterdir()} if target.exists() else set()
    # An older release has not marked it.
    shapes = marked((source / "config.json").read_bytes())
    manifest = released(read_manifest(source), config, shapes)
    own = {
        "config.json": shapes,
        QUANTIZATION: config.to_json().encode(),
        MANIFEST: (json.dumps(manifest, indent=2) + "\n").encode(),
    }
    if theirs <= set(KEPT):
        with whole_folder(target, keep=KEPT) as folder:
            write_copy(source, own, theirs, folder)
        return target
    refuse_other_models(target, theirs)
    with writing(target), tempfile.TemporaryDirectory(dir=target, prefix=TEMPORARY) as aside:
        write_copy(source, own, theirs & set(KEPT), Path(aside), target)
        (target / STAMP).unlink(missing_ok=True)
        # The manifest comes last: until then it does not fit, and a reader says so. Who has mapped
        # the old weights keeps them.
        for file in sorted(Path(aside).iterdir(), key=lambda file: file.name == MANIFEST):
            file.replace(target / file.name)
        flush_folder(target)
    return target


def write_copy(
    source: Path,
    own: Mapping[str, bytes],
    theirs: Set[str],
    folder: Path,
    target: Path | None = None,
) -> None:
    """Write `own` to a folder, and copy what else is in `source` and not in `theirs`.

    target: where the files are moved to; what lies there already is not copied
    """
    for file in to_copy(source, {*own, *theirs}):
        there = None if target is None else target / file.name
        if there is None or not there.exists() or not file.samefile(there):
            copy_flushed(file, folder / file.name)
    for name, data in own.items():
        write_flushed(folder / name, data)


def to_copy(source: Path, but: Set[str]) -> list[Path]:
    """The files of a quantized folder, except for some names and hidden ones.

    Raises CheckpointError for a link that leads nowhere or out of the folder, and for what has the
    name of a file and is none.
    """
    found = []
    for file in sorted(source.iterdir()):
        if file.name in but or file.name.startswith("."):
            continue
        if file.is_symlink() or file.name in SIDECARS:
            require_inside(file)
            UnchangedFile(file)
        if file.is_file():
            found.append(file)
    return found


def refuse_other_models(target: Path, theirs: Set[str]) -> None:
    """Raise CacheError unless a folder holds no model, or an earlier copy."""
    if not theirs & MODEL_FILES and not any(name.endswith(WEIGHT_ENDINGS) for name in theirs):
        return
    if is_packed(target):
        if read_manifest(target)["key"] is None:
            return
        raise CacheError(
            f"{target} belongs to the cache, which other processes use: choose another folder"
        )
    raise CacheError(
        f"{target} holds another model, and saving would replace its weights: choose another "
        "folder, or remove it"
    )


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, CacheError):
            raise
        raise unwritable(target, error) from error
