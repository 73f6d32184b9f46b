"""tokenizer.model alone: sentencepiece's file, turned into a tokenizer.json and read as one.

sentencepiece itself is the oracle: its ids are compared with those of the converted tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import transformers

from neuralchat_lite.checkpoints.tokenizer_json import (
    NAMED_FILES,
    PROBES,
    read_tokenizer_json,
    staged,
)
from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.files.json_file import read_optional_json

NEEDED = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}  # module: package
COPIED = ("chat_template.json", *NAMED_FILES)


def read_tokenizer_model(folder: Path, options: Mapping[str, Any]) -> Any:
    """The tokenizer of a folder that has tokenizer.model and no tokenizer.json.

    Raises CheckpointError when a package is missing or the ids are not sentencepiece's, and
    whatever the parsers raise for a damaged file.
    """
    require_packages(folder)
    converted = convert(folder)
    tokenizer = read_converted(converted, folder, options)
    compare_with_sentencepiece(tokenizer, folder)
    return tokenizer


def read_converted(converted: Any, folder: Path, options: Mapping[str, Any]) -> Any:
    """The tokenizer of a folder whose tokenizer.json has to be made, from transformers' own."""
    settings = {**converted.special_tokens_map, **settings_given(folder)}
    with staged(folder, COPIED, {"tokenizer_config.json": settings}) as place:
        converted._tokenizer.save(str(place / "tokenizer.json"))
        try:
            tokenizer = read_tokenizer_json(place, options)
        except CheckpointError as error:  # name the folder that people know
            raise CheckpointError(str(error).replace(str(place), str(folder))) from None
    tokenizer.name_or_path = tokenizer.init_kwargs["name_or_path"] = str(folder)
    return tokenizer


def settings_given(folder: Path) -> dict[str, Any]:
    return read_optional_json(folder / "tokenizer_config.json")


def require_packages(folder: Path) -> None:
    missing = [package for module, package in NEEDED.items() if not is_installed(module)]
    if missing:
        raise CheckpointError(
            f"{folder} has tokenizer.model and no tokenizer.json, and reading that takes "
            f"{' and '.join(missing)}: run `pip install 'neuralchat_lite[sentencepiece]'`, or put "
            "the model's tokenizer.json there"
        )


def is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False


def convert(folder: Path) -> Any:
    """transformers' tokenizer of tokenizer.model, without the added tokens of other files."""
    given = settings_given(folder)
    # What Llama's and Mistral's own classes take where the file is silent.
    settings = {
        "legacy": given.get("legacy") is not False,
        "add_bos_token": given.get("add_bos_token") is not False,
        "add_eos_token": given.get("add_eos_token") is True,
    }
    version = int(transformers.__version__.partition(".")[0])
    # Version 5 gave Llama's class another pre-tokenizer; its general class reads the file as it is.
    reader: Any = transformers.PreTrainedTokenizerFast
    if version < 5:
        reader = transformers.LlamaTokenizerFast
    with staged(folder, ("tokenizer.model",), {}) as place:
        return reader.from_pretrained(place, local_files_only=True, **settings)


def compare_with_sentencepiece(tokenizer: Any, folder: Path) -> None:
    import sentencepiece

    processor: Any = sentencepiece.SentencePieceProcessor()
    processor.Load(str(folder / "tokenizer.model"))
    for text in PROBES:
        wanted = processor.EncodeAsIds(text)
        found = list(tokenizer.encode(text, add_special_tokens=False))
        if found != wanted:
            raise CheckpointError(
                f"the tokenizer in {folder} gives {text!r} the ids {found[:12]}, but sentencepiece "
                f"gives {wanted[:12]} (transformers {transformers.__version__}): put the model's "
                "tokenizer.json there"
            )
