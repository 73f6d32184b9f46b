"""Texts to calibrate with: from a file to samples of equal length.

A text file is one long text. A JSONL file has an object on each line: {"text": ...}, or
{"messages": [...]}, which goes through the model's chat template. The tokens of all texts are
joined in the order of the file and cut into samples; a seed decides which ones are taken.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from neuralchat_lite.checkpoints.hub import HUB_NAME
from neuralchat_lite.checkpoints.tokenizer import Tokenizer
from neuralchat_lite.errors import CheckpointError, ConfigError, PromptError
from neuralchat_lite.families.architecture import Architecture
from neuralchat_lite.files.regular import read_regular, remedy_of
from neuralchat_lite.generation.messages import check_messages, check_text
from neuralchat_lite.generation.prompt import encode_turns
from neuralchat_lite.quantization.calibration import Calibration
from neuralchat_lite.values import plain, shown

CalibrationOption = str | os.PathLike[str] | Sequence[str] | Mapping[str, Any] | None
SAMPLES = 128
LENGTH = 512
SEED = 0
HUB_ROWS = 2000
LIMIT = 256 << 20  # bytes of a file
FORM = 'a line is {"text": "..."} or {"messages": [{"role": ..., "content": ...}]}'


@dataclass(frozen=True)
class Texts:
    """What to calibrate with, not yet tokenized.

    entries: texts, or lists of messages
    named: where they are from, for errors
    """

    entries: tuple[Any, ...]
    named: str
    samples: int = SAMPLES
    length: int = LENGTH
    seed: int = SEED


def texts_of(given: CalibrationOption) -> Texts | None:
    """The texts that an option names. Raises ConfigError for what cannot be read."""
    if given is None:
        return None
    if isinstance(given, str | os.PathLike):
        if isinstance(given, str) and HUB_NAME.fullmatch(given) and not Path(given).exists():
            return hub_texts(given)
        return read_texts(Path(given).expanduser())
    if isinstance(given, Mapping):
        return with_options(given)
    if isinstance(given, Sequence) and given:
        return Texts(tuple(given), "calibration")
    raise ConfigError(
        f"calibration must be a file, a list of texts or a dictionary, got {shown(given)}: give a "
        "text or JSONL file"
    )


def with_options(given: Mapping[str, Any]) -> Texts:
    known = ("file", "texts", "samples", "length", "seed")
    unknown = [name for name in given if name not in known]
    if unknown or ("file" in given) == ("texts" in given):
        raise ConfigError(
            f"calibration has {list(given)}, expected 'file' or 'texts', and optionally "
            f"{list(known[2:])}: give one of the two"
        )
    texts = texts_of(given["file"] if "file" in given else given["texts"])
    if texts is None:
        raise ConfigError("calibration names the file None: give a text or JSONL file")
    found = {name: plain(given[name]) for name in known[2:] if name in given}
    for name, value in found.items():
        least = 0 if name == "seed" else 1
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(
                f"calibration {name} must be an integer from {least} on, got {shown(value)}: "
                f"leave it out for {getattr(Texts, name)}"
            )
    return replace(texts, **found)


def read_texts(path: Path) -> Texts:
    try:
        text = read_regular(path, LIMIT).decode("utf-8")
    except OSError as error:
        raise ConfigError(
            f"the calibration file {path} cannot be read ({error.strerror or error}): "
            f"{remedy_of(error)}"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the calibration file {path} is not UTF-8 (byte {error.start}): give a text or JSONL "
            "file"
        ) from None
    except ValueError as error:
        raise ConfigError(f"the calibration file {path} {error}: give a smaller one") from None
    if not text.strip():
        raise ConfigError(f"the calibration file {path} is empty: give some pages of text")
    if path.suffix not in (".jsonl", ".json"):
        return Texts((text,), str(path))
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    return Texts(tuple(entry_of(path, number, line) for number, line in lines), str(path))


def hub_texts(name: str) -> Texts:
    """The column "text" of a data set's part "train", or its column "messages"."""
    try:
        from datasets import load_dataset

        rows = load_dataset(name, split="train", streaming=True)
        found = [row.get("text") or row.get("messages") for row in rows.take(HUB_ROWS)]
    except Exception as error:  # of any of the libraries below
        raise ConfigError(
            f"the data set {name!r} cannot be read from the hub ({shown(str(error))}): give a "
            "text or JSONL file instead"
        ) from None
    if not found or not all(found):
        raise ConfigError(
            f"the data set {name!r} has neither texts nor messages: give a text or JSONL file"
        )
    return Texts(tuple(found), name)


def entry_of(path: Path, number: int, line: str) -> Any:
    """The text or the messages of a line."""
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{path}: line {number} is not JSON ({error}): {FORM}") from None
    if isinstance(entry, dict) and isinstance(entry.get("text"), str):
        return entry["text"]
    if isinstance(entry, dict) and isinstance(entry.get("messages"), list):
        return entry["messages"]
    raise ConfigError(f"{path}: line {number} has neither text nor messages: {FORM}")


def ids_of(entry: Any, tokenizer: Tokenizer) -> Sequence[int]:
    """The ids of a text, or of messages, which may end with an answer."""
    if isinstance(entry, str):
        check_text(entry, "it")
        return tokenizer.encode(entry)
    answered = isinstance(entry[-1], Mapping) and entry[-1].get("role") == "assistant"
    check_messages(entry[:-1] if answered and len(entry) > 1 else entry)
    if answered and not isinstance(entry[-1].get("content"), str):
        raise PromptError("the answer has no content: give a text")
    return encode_turns(entry, tokenizer, None, asks=False)


def tokenized(
    texts: Texts | None, tokenizer: Tokenizer, architecture: Architecture
) -> Calibration | None:
    """Samples of token ids. Raises ConfigError when the texts are too short, or messages do not fit
    the chat template."""
    if texts is None:
        return None
    length = min(texts.length, architecture.max_positions)
    stream: list[int] = []
    for number, entry in enumerate(texts.entries, 1):
        if not entry:
            continue
        if not isinstance(entry, str | list | tuple):
            raise ConfigError(
                f"{texts.named}: text {number} is {shown(entry)}, expected a text or a list of "
                "messages"
            )
        try:
            stream += ids_of(entry, tokenizer)
        except (PromptError, CheckpointError) as error:
            raise ConfigError(f"{texts.named}: text {number} cannot be used ({error})") from None
    whole = len(stream) // length
    if whole == 0:
        raise ConfigError(
            f"{texts.named} has {len(stream)} tokens, a sample has {length}: give more text, or a "
            "shorter length (`--calibration-length`)"
        )
    taken = sorted(random.Random(texts.seed).sample(range(whole), min(texts.samples, whole)))
    ids = torch.tensor(stream[: whole * length], dtype=torch.int64).view(whole, length)
    return Calibration(ids[taken])
