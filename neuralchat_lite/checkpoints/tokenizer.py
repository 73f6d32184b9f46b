"""The tokenizer of a model folder, read without running code and without the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, cast

from transformers import AutoTokenizer

from neuralchat_lite.checkpoints.sidecars import open_sidecars
from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.files.names import SIDECARS, VOCABULARIES


class Tokenizer(Protocol):
    """What this library needs of a Hugging Face tokenizer."""

    all_special_ids: list[int]
    chat_template: Any

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = ..., **options: Any) -> str: ...

    def convert_ids_to_tokens(self, ids: int) -> str | None: ...

    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...


def require_tokenizer(folder: Path, origin: Path | None = None) -> None:
    if not any((folder / name).exists() for name in VOCABULARIES):
        raise CheckpointError(
            f"{origin or folder} has no tokenizer, expected one of {', '.join(VOCABULARIES)}: "
            "copy the tokenizer files of the model there"
        )


def load_tokenizer(folder: Path, origin: Path | None = None) -> Tokenizer:
    """The tokenizer of a model folder. Runs no code from it and never goes to the network.

    origin: the folder to name in errors, when this one is temporary
    """
    require_tokenizer(folder, origin)
    open_sidecars(folder, SIDECARS)  # the parsers would wait for a pipe, and read a device for ever
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    # An error here always comes from the files. The parsers raise any type, even bare Exception.
    except Exception as error:
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(
            f"the tokenizer in {origin or folder} cannot be read ({why}): download its files and "
            "config.json again"
        ) from error
    return cast(Tokenizer, tokenizer)
