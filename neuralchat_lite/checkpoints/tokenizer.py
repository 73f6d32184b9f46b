"""The tokenizer of a model folder, read without running code and without the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from neuralchat_lite.checkpoints.sidecars import open_sidecars
from neuralchat_lite.checkpoints.tokenizer_json import read_tokenizer_json, staged
from neuralchat_lite.checkpoints.tokenizer_model import read_converted, read_tokenizer_model
from neuralchat_lite.checkpoints.tokenizer_settings import check_settings
from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.files.json_file import read_json
from neuralchat_lite.files.names import SIDECARS, TOKENIZER, VOCABULARIES


class Tokenizer(Protocol):
    """What this library needs of a Hugging Face tokenizer."""

    all_special_ids: list[int]
    chat_template: Any
    eos_token_id: int | None
    special_tokens_map: dict[str, Any]

    def get_vocab(self) -> dict[str, int]: ...

    def get_added_vocab(self) -> dict[str, int]: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = ..., **options: Any) -> str: ...

    def convert_ids_to_tokens(self, ids: int) -> str | None: ...

    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...


def require_tokenizer(folder: Path, origin: Path | None = None) -> None:
    """Raise CheckpointError unless a tokenizer can be made of the files of a folder."""
    if not any((folder / name).exists() for name in VOCABULARIES):
        raise CheckpointError(
            f"{origin or folder} has no tokenizer, expected one of {', '.join(VOCABULARIES)}: "
            "copy the tokenizer files of the model there"
        )


def read_vocabulary(folder: Path, options: Mapping[str, Any]) -> Any:
    """A tokenizer of vocab.json and merges.txt: the class decides what they mean."""
    from transformers import AutoTokenizer

    config = folder / "config.json"
    model_type = read_json(config).get("model_type") if config.exists() else None
    # Of config.json it needs the type alone, and the rest is judged by `families`.
    with staged(folder, TOKENIZER, {"config.json": {"model_type": model_type}}) as place:
        converted: Any = AutoTokenizer.from_pretrained(
            place, local_files_only=True, trust_remote_code=False
        )
    return read_converted(converted, folder, options)


# The first file of VOCABULARIES that is there -> what reads it.
READERS: dict[str, Callable[[Path, Mapping[str, Any]], Any]] = {
    "tokenizer.json": read_tokenizer_json,
    "tokenizer.model": read_tokenizer_model,
    "vocab.json": read_vocabulary,
}


def load_tokenizer(folder: Path, origin: Path | None = None, **options: Any) -> Tokenizer:
    """The tokenizer of a model folder. Runs no code from it and never goes to the network.

    origin: the folder to name in errors, when this one is temporary
    options: settings of transformers' tokenizers, such as padding_side, instead of the folder's
    """
    require_tokenizer(folder, origin)
    open_sidecars(folder, SIDECARS)  # the parsers would wait for a pipe, and read a device for ever
    read = next(READERS[name] for name in VOCABULARIES if (folder / name).exists())
    try:
        check_settings(folder)
        tokenizer = read(folder, options)
    except CheckpointError as error:
        if origin is None:
            raise
        raise CheckpointError(str(error).replace(str(folder), str(origin))) from None
    # An error here always comes from the files. The parsers raise any type, even bare Exception.
    # Its text may steer a terminal, and a traceback would show it: hence `from None`.
    except Exception as error:
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(
            f"the tokenizer in {origin or folder} cannot be read ({why}): download its files again"
        ) from None
    return cast(Tokenizer, tokenizer)
