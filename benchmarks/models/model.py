"""The model of a run: its checkpoint, its digest, and where engines keep their formats of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.models.kept import COMPLETE, is_whole
from neuralchat_lite.checkpoints import is_source_file, open_source
from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.families.architecture import Architecture
from neuralchat_lite.families.config_json import read_architecture
from neuralchat_lite.files.digests import sha256_of
from neuralchat_lite.files.json_file import read_json


class Format(Protocol):
    """What decides the folder that an engine loads; `engines.table.Variant` is one.

    stored: name of the engine's format, None where the engine loads the checkpoint itself
    """

    @property
    def engine(self) -> str: ...

    @property
    def stored(self) -> str | None: ...


@dataclass(frozen=True)
class Model:
    """The checkpoint that all engines run.

    name: its name in rows
    folder: of the checkpoint; or a GGUF file
    formats: the folder of what engines have made of it
    digest: equal for equal models; of what it covers, see `at`
    """

    name: str
    folder: Path
    formats: Path
    digest: str
    architecture: Architecture

    @classmethod
    def at(cls, name: str, folder: Path, root: Path, digest: str | None = None) -> Model:
        """root: where formats are kept
        digest: of the weights too, where their values matter (accuracy); by default that of their
            shapes, which is all that speed depends on
        """
        folder = folder.absolute()  # workers run in another one
        digest = digest or checkpoint_digest(folder)
        formats = formats_folder(name, digest, root)
        return cls(name, folder, formats, digest, architecture_of(folder))

    @property
    def is_file(self) -> bool:
        return is_source_file(self.folder)

    def stored(self, wanted: Format) -> Path:
        """The folder that an engine loads."""
        if wanted.stored is None:
            return self.folder
        return self.formats / f"{wanted.engine}-{wanted.stored}"

    def is_stored(self, wanted: Format) -> bool:
        """Whether that folder exists and is whole."""
        return wanted.stored is None or is_whole(self.stored(wanted))

    def kv_bytes(self, context: int, item: int) -> int:
        """Bytes of keys and values that one sequence reads to decode a token at `context`.

        item: bytes of one number in the cache
        """
        arch = self.architecture
        seen = sum(min(context, window or context) for window in arch.windows)
        return 2 * seen * arch.kv_size * item


def architecture_of(folder: Path) -> Architecture:
    return open_source(folder).architecture if is_source_file(folder) else read_architecture(folder)


def model_name(model: str) -> str:
    """A model's name in rows: a hub name, or its folder's name, which says more than "model"."""
    if not Path(model).exists():
        return model
    folder = Path(model).resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def formats_folder(name: str, digest: str, root: Path) -> Path:
    """The folder of all formats of a model."""
    return root / f"{name.replace('/', '_')}-{digest[:12]}"


def checkpoint_digest(folder: Path) -> str:
    """A sha256 that two runs share when they have measured models of the same shape.

    Of a random checkpoint it is the digest of its shape. Of a real one it covers config.json and
    the headers of its files: names, types and shapes of all tensors. Speed depends on no more,
    and hashing 14 GB of weights takes longer than most measurements. Of a GGUF file it is that of
    all its bytes.
    """
    if is_source_file(folder):
        return sha256_of(folder)
    mark = folder / COMPLETE
    if mark.exists():
        return str(read_json(mark)["sha256"])
    checkpoint = open_checkpoint(folder)
    digest = hashlib.sha256(sha256_of(folder / "config.json").encode())
    for mapped in checkpoint.files:
        with mapped.path.open("rb") as file:
            digest.update(file.read(int.from_bytes(file.read(8), "little")))
    return digest.hexdigest()
