"""Finding the folder of a model: from a path, or from a name on the Hugging Face hub.

A name is downloaded by `huggingface_hub`, with its own cache, tokens and environment variables.
Only files that this library reads are downloaded: configuration, tokenizer and safetensors of a
model or an adapter. Code and pickled files are never downloaded.
"""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from neuralchat_lite.checkpoints import SOURCES, is_source_file
from neuralchat_lite.checkpoints.foreign import MODEL_FILES, refuse_impostors
from neuralchat_lite.errors import CheckpointError, HubError
from neuralchat_lite.files.names import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    INDEX,
    MANIFEST,
    QUANTIZATION,
    SIDECARS,
    TOKENIZER,
    is_file_name,
)
from neuralchat_lite.values import shown

# "model*" leaves out second copies of the weights, such as Mistral's consolidated.safetensors.
SHARDS = "model*.safetensors"
WANTED = (*SIDECARS, QUANTIZATION, MANIFEST, SHARDS, INDEX)
HUB_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Kind:
    """A kind of folder: its name in messages, the files to download, the pattern of the weights
    that must be among them, the library whose save_pretrained writes such a folder, and what to do
    where the weights are missing (None: convert them with that library)."""

    noun: str
    one: str
    wanted: tuple[str, ...]
    weights: str
    library: str
    remedy: str | None = None


MODEL = Kind("model", "a model", WANTED, SHARDS, "transformers")
ADAPTER = Kind(
    "adapter", "an adapter", (ADAPTER_CONFIG, ADAPTER_WEIGHTS, *TOKENIZER), ADAPTER_WEIGHTS, "peft"
)
# Whether a vocabulary is among them, `require_tokenizer` says.
TOKENIZER_ALONE = Kind("tokenizer", "a tokenizer", ("config.json", *TOKENIZER), "*", "transformers")


@dataclass(frozen=True)
class Resolved:
    """Where the files are, and for a hub name its (repository id, commit)."""

    folder: Path
    hub: tuple[str, str] | None = None

    @cached_property
    def packed(self) -> bool:
        """Whether it is a quantized model of this library. See `kinds.is_packed`."""
        from neuralchat_lite.checkpoints.kinds import is_packed  # which needs torch

        return is_packed(self.folder)


def resolve(
    name_or_path: str | os.PathLike[str] | Resolved,
    revision: str | None = None,
    token: str | None = None,
    *,
    kind: Kind = MODEL,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    file: str | None = None,
) -> Resolved:
    """Find the folder of a model or an adapter, downloading it when it is a hub name that was not
    downloaded before.

    kind: MODEL, ADAPTER or TOKENIZER_ALONE
    cache_dir: folder for downloads, instead of the hub client's own cache
    local_files_only: download nothing
    file: the name of a file there that is a model by itself, such as "model.Q4_K_M.gguf"

    An existing folder wins over a hub name. A `Resolved` is returned unchanged. Raises
    CheckpointError for a path that is not a folder, HubError for a name that is not available.
    """
    if isinstance(name_or_path, Resolved):
        return name_or_path
    if not isinstance(name_or_path, str | os.PathLike):
        raise CheckpointError(
            f"the {kind.noun} must be a folder or a hub name, got {shown(name_or_path)}"
        )
    if not os.fspath(name_or_path):
        raise CheckpointError(f"the {kind.noun} is an empty string: give a folder or a hub name")
    try:
        path = Path(name_or_path).expanduser()
        is_folder, exists = path.is_dir(), path.exists()
        if is_folder:
            next(path.iterdir(), None)
    except (OSError, RuntimeError, ValueError) as error:  # denied, too long, ~nobody, a zero byte
        why = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{str(name_or_path)[:200]!r} cannot be opened as {kind.one} folder ({why}): check the "
            "path and its permissions"
        ) from None
    if is_folder:
        if revision is not None:
            raise CheckpointError(
                f"revision {revision!r} was given for the folder {str(path)!r}, but only hub "
                "names have revisions: leave it out"
            )
        if file is not None:
            return Resolved(source_file(path, file))
        refuse_impostors(path)
        return Resolved(path)
    if exists and kind is not ADAPTER and is_source_file(path):
        return Resolved(path)
    if exists:
        remedy = MODEL_FILES.get(path.suffix.lower(), "give the folder that holds it")
        raise CheckpointError(f"{str(path)!r} is a file, expected {kind.one} folder: {remedy}")
    if not isinstance(name_or_path, str) or not HUB_NAME.fullmatch(name_or_path):
        raise CheckpointError(
            f"there is no folder {str(name_or_path)!r}, and it is not a hub name either: give the "
            f"path of {kind.one} folder, or a name of the form 'organisation/{kind.noun}'"
        )
    if file is not None:
        kind = file_kind(kind, require_source_name(file))
    found = download(name_or_path, revision, token, kind, cache_dir, local_files_only)
    return found if file is None else Resolved(found.folder / file, found.hub)


def file_kind(kind: Kind, name: str) -> Kind:
    """One file of a repository, instead of its folder."""
    remedy = "choose a file that the repository lists"
    pattern = glob.escape(name)
    return replace(kind, wanted=(pattern,), weights=pattern, remedy=remedy)


def source_file(folder: Path, name: str) -> Path:
    """A file of a folder that is a model by itself. Raises CheckpointError."""
    path = folder / require_source_name(name)
    if not is_source_file(path):
        there = [each.name for each in folder.iterdir() if is_source_file(each)]
        raise CheckpointError(
            f"{path} is not a file: give one of {shown(sorted(there))}"
            if there
            else f"{path} is not a file, and {folder} has no other model files: download it"
        )
    return path


def require_source_name(name: str) -> str:
    if not is_file_name(name) or Path(name).suffix.lower() not in SOURCES:
        endings = ", ".join(ending for ending in SOURCES if ending.startswith("."))
        raise CheckpointError(
            f"the file of a model must be a name that ends in {endings}, without folders, got "
            f"{shown(name)}: give the name of a file in the folder or the repository"
        )
    return name


def download(
    name: str,
    revision: str | None,
    token: str | None,
    kind: Kind,
    cache_dir: str | os.PathLike[str] | None,
    local_files_only: bool,
) -> Resolved:
    import huggingface_hub
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # the HTTP client's

    at = name if revision is None else f"{name} at revision {revision!r}"
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision,
                token=token,
                cache_dir=None if cache_dir is None else Path(cache_dir),
                local_files_only=local_files_only,
                allow_patterns=list(kind.wanted),
            )
        )
    # The hub client raises OSError (no such name, no access, no space), ValueError (an invalid
    # name), or what its HTTP client raises when a connection breaks.
    except (OSError, ValueError, HTTPError) as error:
        raise HubError(f"cannot get {at}: {explain(error)}") from error
    if not any(folder.glob(kind.weights)):
        if kind.remedy is not None:
            raise HubError(f"{at} has no {kind.wanted[0]}: {kind.remedy}")
        raise HubError(
            f"{at} has no {kind.weights}, and pickled weights are never loaded: choose a revision "
            f"with safetensors, or convert it with {kind.library}'s save_pretrained and give that "
            "folder"
        )
    if not COMMIT.fullmatch(folder.name):
        raise HubError(
            f"{at} was stored in {folder}, expected a folder named after its commit: "
            "give that folder's path instead of the name"
        )
    return Resolved(folder, (name, folder.name))


def explain(error: Exception) -> str:
    """What went wrong, and the remedy, from an exception of the hub client."""
    from huggingface_hub import errors

    # The first row that matches is used, so subclasses come before their bases.
    remedies: tuple[tuple[type[Exception], str], ...] = (
        (
            errors.GatedRepoError,
            "access must be requested on its page; then give a token, or set HF_TOKEN",
        ),
        (
            errors.RepositoryNotFoundError,
            "there is no such repository, or it is private: check the spelling, and give a token "
            "(or set HF_TOKEN) for a private one",
        ),
        (
            errors.RevisionNotFoundError,
            "the repository has no such revision: give an existing branch, tag or commit",
        ),
        (errors.HFValidationError, "a name must have the form 'organisation/model'"),
        (
            errors.LocalEntryNotFoundError,
            "it is not in the local cache, and the hub is "
            + ("off (HF_HUB_OFFLINE is set)" if is_offline() else "not reachable")
            + ": download it beforehand on a machine with a connection (`hf download NAME`), give "
            "the path of a model folder"
            + (", or unset HF_HUB_OFFLINE" if is_offline() else ", or check the connection"),
        ),
    )
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    fallback = f"{first_line}: try again, or give the path of a model folder"
    return next((remedy for kind, remedy in remedies if isinstance(error, kind)), fallback)


def is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
