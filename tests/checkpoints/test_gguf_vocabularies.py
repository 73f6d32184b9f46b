"""llama.cpp's own vocabulary files give the ids that it expects, or are refused by name.

They are not part of this repository: docs/how-to/gguf.md says where they are. To run these tests,
set NEURALCHAT_LITE_GGUF_VOCABULARIES to their folder.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from neuralchat_lite.checkpoints.gguf.header import GGUFFile
from neuralchat_lite.checkpoints.gguf.values import Metadata
from neuralchat_lite.checkpoints.gguf.vocabulary import read_vocabulary, tokenizer_files
from neuralchat_lite.errors import UnsupportedModelError

FOLDER = os.environ.get("NEURALCHAT_LITE_GGUF_VOCABULARIES")
FILES = sorted(Path(FOLDER).glob("ggml-vocab-*.gguf")) if FOLDER else []
SEPARATOR = "\n__ggml_vocab_test__\n"
# Encoders of texts, which no decoder uses.
REFUSED = {"bert-bge": "tokenizer.ggml.model 'bert'", "nomic-bert-moe": "tokenizer.ggml.model 't5'"}
# No expected ids lie beside these.
WITHOUT_IDS = {"aquila", "baichuan", "gpt-neox"}

pytestmark = pytest.mark.skipif(
    not FILES, reason="NEURALCHAT_LITE_GGUF_VOCABULARIES names no folder with llama.cpp's files"
)


def name_of(path: Path) -> str:
    return path.stem.removeprefix("ggml-vocab-")


def read(path: Path) -> Tokenizer:
    metadata = Metadata(path.name, GGUFFile(path).metadata)
    files = tokenizer_files(read_vocabulary(metadata), 2048)
    return Tokenizer.from_buffer(files["tokenizer.json"])


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_text_has_the_expected_ids(path: Path) -> None:
    if name_of(path) in REFUSED:
        with pytest.raises(UnsupportedModelError, match=REFUSED[name_of(path)]):
            read(path)
        return
    tokenizer = read(path)
    if name_of(path) in WITHOUT_IDS:
        return
    texts = path.with_name(path.name + ".inp").read_bytes().decode().split(SEPARATOR)
    wanted = path.with_name(path.name + ".out").read_text().splitlines()
    assert len(texts) >= len(wanted) >= 40
    for text, ids in zip(texts, wanted, strict=False):
        found = tokenizer.encode(text, add_special_tokens=False).ids
        assert found == [int(each) for each in ids.split()], f"{text!r}"
