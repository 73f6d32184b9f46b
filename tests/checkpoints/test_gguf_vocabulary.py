"""Tokenizers from metadata: small vocabularies whose ids can be seen."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer

from neuralchat_lite.checkpoints.gguf.pretokenizers import PRETOKENIZERS
from neuralchat_lite.checkpoints.gguf.values import Metadata
from neuralchat_lite.checkpoints.gguf.vocabulary import read_vocabulary, tokenizer_files
from neuralchat_lite.errors import CheckpointError, UnsupportedModelError

from ..made_gguf import byte_tokens

PREFIX = "tokenizer.ggml"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPM: dict[str, Any] = {
    "model": "llama",
    "tokens": ["<unk>", "<s>", "</s>", *BYTES, "▁", "a", "b", "▁a", "ab", "▁ab"],
    "token_type": [2, 3, 3, *[6] * 256, *[1] * 6],
    "scores": [0.0] * 259 + [-9.0, -9.0, -9.0, -2.0, -1.0, -3.0],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unknown_token_id": 0,
}
BPE: dict[str, Any] = {
    "model": "gpt2",
    "pre": "gpt-2",
    "tokens": [*byte_tokens(), "12", "Ġa", "ĠaĠa", "<s>", "  "],
    "token_type": [*[1] * 259, 3, 4],
    "merges": ["1 2", "Ġ a", "Ġa Ġa"],
    "bos_token_id": 259,
}


def read(values: dict[str, Any], **change: Any) -> Tokenizer:
    keyed = {f"{PREFIX}.{key}": value for key, value in (values | change).items()}
    files = tokenizer_files(read_vocabulary(Metadata("m.gguf", keyed)), 64)
    return Tokenizer.from_buffer(files["tokenizer.json"])


def test_sentencepiece_merges_by_score_and_has_bytes_for_the_rest() -> None:
    tokenizer = read(SPM)
    assert tokenizer.encode("ab a\n").tokens == ["<s>", "▁ab", "▁a", "<0x0A>"]
    assert tokenizer.encode("ab</s>ab", add_special_tokens=False).tokens == ["▁ab", "</s>", "▁ab"]
    assert tokenizer.decode(tokenizer.encode("ab é").ids) == "ab é"


def test_the_metadata_say_what_is_put_around_a_text() -> None:
    plain = read(SPM, add_bos_token=False, add_eos_token=True, add_space_prefix=False)
    assert plain.encode("ab").tokens == ["ab", "</s>"]
    assert read(BPE).encode("a").tokens == ["a"]
    assert read(BPE, add_bos_token=True).encode("a").tokens == ["<s>", "a"]
    assert read(BPE, pre="llama-bpe").encode("a").tokens == ["<s>", "a"]  # its default


def test_the_pre_tokenizer_decides_where_merges_end() -> None:
    assert read(BPE).encode("12").tokens == ["12"]
    assert read(BPE, pre="smollm").encode("12").tokens == ["1", "2"]
    assert read(BPE, pre="qwen2").encode("12").tokens == ["1", "2"]
    assert read(BPE, pre="llama-bpe", add_bos_token=False).encode("12").tokens == ["12"]


def test_tokens_of_users_are_found_before_pieces() -> None:
    assert read(BPE).encode("a  a").tokens == ["a", "  ", "a"]


@pytest.mark.parametrize("name", PRETOKENIZERS)
def test_every_pre_tokenizer_keeps_every_character(name: str) -> None:
    text = "It's 12345 naïve  tests,\n\n\t你好 🙂 end. <|x|> Ωλ ١٢ \r\n"
    tokenizer = read(BPE, pre=name, add_bos_token=False)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_file_without_a_name_has_the_default_and_a_warning(caplog: Any) -> None:
    values = {key: value for key, value in BPE.items() if key != "pre"}
    assert read(values).encode("12").ids == read(BPE, pre="default").encode("12").ids
    assert "m.gguf has no tokenizer.ggml.pre" in caplog.text


def test_other_kinds_are_refused_with_those_that_are_known() -> None:
    with pytest.raises(UnsupportedModelError, match=r"pre 'viking' is not.* command-r"):
        read(BPE, pre="viking")
    with pytest.raises(UnsupportedModelError, match=r"model 't5' is not.*gemma4, gpt2, llama"):
        read(BPE, model="t5")
    with pytest.raises(CheckpointError, match=r"scores must be a list of 265 numbers"):
        read(SPM, scores=[0.0])
