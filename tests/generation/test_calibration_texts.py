"""Texts to calibrate with: from files, lists and the hub to samples of equal length."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.checkpoints.tokenizer import load_tokenizer
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.generation.calibration_texts import texts_of, tokenized
from neuralchat_lite.generation.prompt import encode_turns

NANO = Path(__file__).parents[2] / "examples/nano/model"
TEXT = "calculate 1 + 2 + 3. " * 40
MESSAGES = [
    {"role": "user", "content": "calculate 1 + 2"},
    {"role": "assistant", "content": "Answer: 3"},
]


def ids_of(given: Any) -> torch.Tensor:
    made = tokenized(texts_of(given), load_tokenizer(NANO), open_checkpoint(NANO).architecture)
    assert made is not None
    return made.ids


def test_a_file_and_its_text_give_the_same_samples(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    lines = tmp_path / "text.jsonl"
    lines.write_text(json.dumps({"text": TEXT}) + "\n\n")
    options = {"length": 16, "samples": 5}
    want = ids_of({"texts": [TEXT], **options})
    assert want.shape == (5, 16)
    for path in (file, lines, str(file)):
        assert torch.equal(ids_of({"file": path, **options}), want)


def test_the_seed_decides_which_samples_are_taken() -> None:
    options = {"texts": [TEXT], "length": 4, "samples": 3}
    first, again, other = (ids_of({**options, "seed": seed}) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_messages_go_through_the_chat_template_with_their_answers() -> None:
    want = encode_turns(MESSAGES, load_tokenizer(NANO), None, asks=False)
    found = ids_of({"texts": [MESSAGES], "length": len(want)})
    assert found.tolist() == [want]


def test_a_data_set_of_the_hub_is_its_column_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Rows(list[Any]):
        def take(self, count: int) -> list[Any]:
            return self[:count]

    def load_dataset(name: str, **options: Any) -> Rows:
        asked.append(name)
        return Rows([{"text": TEXT}])

    theirs = SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", theirs)
    options = {"length": 16, "samples": 5}
    found = ids_of({"file": "owner/some-texts", **options})
    assert torch.equal(found, ids_of({"texts": [TEXT], **options}))
    assert asked == ["owner/some-texts"]
    monkeypatch.setattr(theirs, "load_dataset", lambda *_, **__: 1 / 0)
    with pytest.raises(ConfigError, match=r"cannot be read from the hub .* give a text or JSONL"):
        texts_of("owner/some-texts")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, "calibration must be a file, a list of texts or a dictionary, got 5"),
        ([], "calibration must be a file"),
        ({"texts": [TEXT], "file": "a"}, "give one of the two"),
        ({"texts": [TEXT], "count": 5}, "calibration has .*'count'"),
        ({"texts": [TEXT], "samples": 0}, "samples must be an integer from 1 on, got 0"),
        ({"texts": [TEXT], "length": "x"}, "length must be an integer from 1 on, got 'x'"),
        ({"texts": ["short"], "length": 64}, "a sample has 64: give more text"),
        ({"texts": [[{"role": "user"}]]}, "text 1 cannot be used"),
        ({"texts": [5]}, "text 1 is 5, expected a text or a list of messages"),
    ],
)
def test_what_cannot_be_used_is_told_with_its_remedy(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ids_of(given)
