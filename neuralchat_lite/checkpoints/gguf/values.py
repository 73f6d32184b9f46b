"""Values of a GGUF file's metadata, each checked as it is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.values import shown

KINDS: dict[str, tuple[type, ...]] = {
    "a text": (str,),
    "true or false": (bool,),
    "a whole number": (int,),
    "a number": (int, float),
}


class Metadata:
    """The metadata of a file, with the errors of that file.

    Every function gives None where the key is missing, and raises CheckpointError for a value of
    another kind.
    """

    def __init__(self, file: str, values: Mapping[str, Any]) -> None:
        self.file, self.values = file, values

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def text(self, key: str) -> str | None:
        return cast("str | None", self._one(key, "a text"))

    def flag(self, key: str) -> bool | None:
        return cast("bool | None", self._one(key, "true or false"))

    def whole(self, key: str) -> int | None:
        return cast("int | None", self._one(key, "a whole number"))

    def number(self, key: str) -> float | None:
        return cast("float | None", self._one(key, "a number"))

    def texts(self, key: str) -> list[str] | None:
        return cast("list[str] | None", self._list(key, "a text"))

    def wholes(self, key: str) -> list[int] | None:
        return cast("list[int] | None", self._list(key, "a whole number"))

    def numbers(self, key: str) -> list[float] | None:
        return cast("list[float] | None", self._list(key, "a number"))

    def wrong(self, key: str, rule: str) -> CheckpointError:
        return CheckpointError(
            f"{self.file}: {key} must be {rule}, got {shown(self.values.get(key))}: download the "
            "file again"
        )

    def _one(self, key: str, kind: str) -> Any:
        value = self.values.get(key)
        if value is not None and not is_of(value, kind):
            raise self.wrong(key, kind)
        return value

    def _list(self, key: str, kind: str) -> Any:
        value = self.values.get(key)
        if value is not None and not (
            isinstance(value, list) and (not value or all(is_of(each, kind) for each in value))
        ):
            raise self.wrong(key, f"a list with {kind} in each place")
        return value


def is_of(value: Any, kind: str) -> bool:
    return isinstance(value, KINDS[kind]) and (kind == "true or false" or type(value) is not bool)
