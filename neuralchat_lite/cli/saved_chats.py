"""A conversation in a file: JSON, written whole or not at all, and checked when it is read."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from neuralchat_lite.errors import ConfigError

FORMAT, VERSION = "neuralchat_lite chat", 1
LARGEST = 16 << 20  # bytes; far more than a context holds

Messages = list[dict[str, str]]


def save_chat(path: Path, model: str, messages: Messages) -> None:
    """Raises ConfigError when the path is something else than a saved chat, OSError when it cannot
    be written."""
    if path.exists():
        read_chat(path)  # nothing else is overwritten
    content = {"format": FORMAT, "version": VERSION, "model": model, "messages": messages}
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("x", encoding="utf-8") as file:
            json.dump(content, file, indent=2, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def read_chat(path: Path) -> tuple[str, Messages]:
    """(model, messages). Raises ConfigError for a file of another form, OSError when it cannot be
    read."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST:
        raise ConfigError(f"{path} is not a saved chat: give a file that /save has written")
    try:
        content: Any = json.loads(path.read_bytes())
        if content["format"] != FORMAT or content["version"] != VERSION:
            raise ValueError
        model, messages = content["model"], content["messages"]
        wrong = [
            message
            for message in messages
            if set(message) != {"role", "content"}
            or not all(isinstance(value, str) for value in message.values())
        ]
        if wrong or not isinstance(model, str) or not isinstance(messages, list):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(
            f"{path} is not a chat of version {VERSION}: give a file that /save has written"
        ) from None
    return model, messages
