"""What a tokenizer's files say is shown as text or refused by name, and steers no terminal."""

from __future__ import annotations

import json
import shutil
import traceback
from pathlib import Path

import pytest

from neuralchat_lite.checkpoints import tokenizer
from neuralchat_lite.checkpoints.their_config import their_config
from neuralchat_lite.checkpoints.tokenizer import load_tokenizer
from neuralchat_lite.errors import CheckpointError

NANO = Path(__file__).parents[2] / "examples/nano/model"
ESCAPE = "\x1b]0;x\x07"


@pytest.mark.parametrize("name", ["special_tokens_map.json", "tokenizer_config.json"])
def test_unknown_fields_of_tokens_are_not_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    for each in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(NANO / each, tmp_path)
    path = tmp_path / name
    given = json.loads(path.read_text()) if path.exists() else {}
    token = {"content": "<odd>", "lstrip": False, "comment": 1, ESCAPE: 1}
    if name == "tokenizer_config.json":
        token["__type"] = "AddedToken"
    path.write_text(json.dumps(given | {"pad_token": token}))
    assert load_tokenizer(tmp_path).pad_token == "<odd>"
    assert capfd.readouterr().out == ""


def test_tracebacks_show_no_raw_text_of_a_parser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: dict[str, object]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError(ESCAPE)

    monkeypatch.setitem(tokenizer.READERS, "tokenizer.json", fail)
    with pytest.raises(CheckpointError) as raised:
        load_tokenizer(NANO)
    assert "\x1b" not in "".join(traceback.format_exception(raised.value))
    (tmp_path / "config.json").write_text(json.dumps(tiny_config | {"model_type": ESCAPE}))
    with pytest.raises(CheckpointError) as raised:
        their_config(tmp_path)
    assert "\x1b" not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("index", ["y", None, -1, True, 1.5, [1]])
def test_an_added_token_without_a_number_is_named(tmp_path: Path, index: object) -> None:
    shutil.copy(NANO / "tokenizer.json", tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<x>": index}))
    with pytest.raises(CheckpointError, match=r"'<x>' must be an id"):
        load_tokenizer(tmp_path)
