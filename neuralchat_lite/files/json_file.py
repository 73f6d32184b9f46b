"""Reading JSON files of a model folder, with errors that say what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from neuralchat_lite.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing: a model folder needs it; download the model again, "
            "or check that the path is the folder with config.json"
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}): check permissions"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}): download it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path} holds a {type(value).__name__}, expected a JSON object: download it again"
        )
    return value
