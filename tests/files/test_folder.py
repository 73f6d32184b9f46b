"""Paths that people give: what cannot be one is refused before the operating system is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import neuralchat_lite as ncl
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.files.folder import given_folder

NANO = Path(__file__).parents[2] / "examples/nano/model"
IMPOSSIBLE = {
    "a zero byte": ("a\0b", "without a zero byte"),
    "half a character": ("\ud800", "half a character"),
    "a long name": ("x" * 5000, "at most 255 bytes"),
    "a long name of few characters": ("é" * 200, "at most 255 bytes"),
    "a long path": ("x/" * 3000, "a path of 5999 characters"),
    "an unknown home": ("~nobody-of-this-name/x", "a user who is not known"),
    "nothing": ("", "is an empty string"),
    "bytes": (b"folder", "must be the path of a folder"),
    "a number": (3, "must be the path of a folder"),
    "a list": (["folder"], "must be the path of a folder"),
    "a path with a zero byte": (Path("a\0b"), "without a zero byte"),
}


CALLS: dict[str, Callable[[Any], object]] = {
    "cache_dir": lambda given: ncl.load(NANO, cache_dir=given),
    "output": lambda given: ncl.quantize(NANO, output=given),
    "output of merge": lambda given: ncl.merge(NANO, [NANO], given),
}


@pytest.mark.parametrize("kind", IMPOSSIBLE)
@pytest.mark.parametrize("call", CALLS)
def test_what_cannot_be_a_path_is_refused_by_the_name_of_its_argument(call: str, kind: str) -> None:
    given, message = IMPOSSIBLE[kind]
    with pytest.raises(ConfigError, match=f"^{call.split()[0]} .*{message}") as caught:
        CALLS[call](given)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_a_model_is_not_saved_to_what_cannot_be_a_path(kind: str, tmp_path: Path) -> None:
    given, message = IMPOSSIBLE[kind]
    model = ncl.load(ncl.quantize(NANO, output=tmp_path / "out"))
    with pytest.raises(ConfigError, match=message):
        model.save_pretrained(given)  # type: ignore[arg-type]


def test_a_home_is_followed(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert given_folder("~/models", "output") == tmp_path / "models"
    for given in ("x", "../x", "/x/y", ".", "a b", Path("x/y")):
        assert given_folder(given, "output") == Path(given)
