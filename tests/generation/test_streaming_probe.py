"""Text that cannot be shown piece by piece is found before it is shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from neuralchat_lite.checkpoints.tokenizer import load_tokenizer
from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.generation.streaming_probe import check_pieces

NANO = Path(__file__).parents[2] / "examples/nano/model"


def test_a_decoder_that_joins_words_by_what_comes_next_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(NANO, tmp_path / "model")
    check_pieces(load_tokenizer(folder), folder)
    parts = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    parts["decoder"] = {"type": "BPEDecoder", "suffix": "e"}
    (folder / "tokenizer.json").write_text(json.dumps(parts), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"decodes .* token by token to .* not supported"):
        check_pieces(load_tokenizer(folder), folder)
