"""The one reader of JSON: a bound on everything, and errors of ours."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.families.config_json import read_architecture
from neuralchat_lite.files.json_file import DEEPEST, JSON_LIMIT, read_json

from ..patience import patience


def deep(levels: int, kind: str = "list") -> str:
    left, right = ("[", "]") if kind == "list" else ('{"a":', "}")
    return left * levels + "1" + right * levels


BAD = {
    "nothing": ("", "is not JSON"),
    "a list": ("[]", "holds a list, expected a JSON object"),
    "a text": ('"{}"', "holds a str, expected"),
    "null": ("null", "holds a NoneType, expected"),
    "a number": ("3", "holds a int, expected"),
    "NaN": ('{"a": NaN}', "holds NaN, and JSON has only finite numbers"),
    "infinity": ('{"a": {"factor": Infinity}}', "holds Infinity"),
    "minus infinity": ('{"a": [-Infinity]}', "holds -Infinity"),
    "a number beyond the largest": ('{"a": 1e999}', "holds 1e999, which is beyond the largest"),
    "a long integer": ('{"a": ' + "9" * 5000 + "}", "holds an integer of 5000 digits"),
    "half a character": ('{"a": "\\ud800"}', "half a character"),
    "half a character in a key": ('{"\\ud800": 1}', "half a character"),
    "deep lists": ('{"a":' + deep(DEEPEST) + "}", "nested more than 64 deep"),
    "deep objects": ('{"a":' + deep(900, "object") + "}", "nested more than 64 deep"),
    "lists without end": ('{"a":' + deep(100_000) + "}", "nested more than 64 deep"),
    "a byte order mark": ("\ufeff{}", "is not JSON"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_json_of_a_model_is_refused(tmp_path: Path, kind: str) -> None:
    text, message = BAD[kind]
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message) as caught:
        read_json(path)
    assert "config.json" in str(caught.value) and "download it again" in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(CheckpointError, match=r"config\.json is not JSON .*utf-8"):
        read_json(path)


def test_what_models_have_is_read(tmp_path: Path) -> None:
    value = {
        "model_max_length": 1000000000000000019884624838656,
        "rms_norm_eps": 1e-05,
        "text": "▁é😀",
        "nested": json.loads(deep(DEEPEST - 2)),
        "none": None,
    }
    (tmp_path / "config.json").write_text(json.dumps(value))
    assert read_json(tmp_path / "config.json") == value


def named_pipe(path: Path) -> None:
    os.mkfifo(path)


def endless_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def link_to_nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


def circle(path: Path) -> None:
    path.symlink_to(path.name)


def endless_file(path: Path) -> None:
    path.touch()
    os.truncate(path, JSON_LIMIT + 1)


UNFIT: dict[Callable[[Path], None], str] = {
    named_pipe: "it is a named pipe, expected a regular file",
    endless_device: "it is a device, expected a regular file",
    folder: "it is a folder, expected a regular file",
    link_to_nowhere: "it is a link to nowhere, where nothing is",
    circle: "links",
    endless_file: "it has 16.78 MB, at most 16.78 MB are read",
}


@pytest.mark.parametrize("make", UNFIT)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_what_is_no_small_regular_file_is_refused_at_once(
    write_checkpoint: Any, make: Callable[[Path], None], name: str
) -> None:
    where = write_checkpoint()
    (where / name).unlink(missing_ok=True)
    make(where / name)
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read \(.*{UNFIT[make]}"):
        read_architecture(where)
    assert time.perf_counter() - start < patience(5)


@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("value", ["Infinity", "NaN", "-Infinity", "1e400"])
def test_a_config_without_finite_numbers_is_refused(
    write_checkpoint: Any, place: str, value: str
) -> None:
    where = write_checkpoint(**{place: {"rope_type": "linear", "factor": 12345.5}})
    path = where / "config.json"
    path.write_text(path.read_text().replace("12345.5", value))
    with pytest.raises(CheckpointError, match=r"config\.json is not JSON .it holds"):
        read_architecture(where)
    path.write_text(path.read_text().replace(value, "2.0"))
    (where / "generation_config.json").write_text(f'{{"temperature": {value}}}')
    with pytest.raises(CheckpointError, match=r"generation_config\.json is not JSON .it holds"):
        read_architecture(where)


def test_more_layers_than_a_file_can_have_are_refused_at_once(write_checkpoint: Any) -> None:
    where = write_checkpoint()
    config = json.loads((where / "config.json").read_text())
    for layers in (1001, 2**31 - 1, 2**63, 10**300):
        (where / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
        with pytest.raises(CheckpointError, match="num_hidden_layers must be at most 1000"):
            read_architecture(where)
