"""Detokenizing piece by piece against decoding all at once, with real tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralchat_lite.generation.text import Detokenizer, StopStrings

from .. import made_model
from ..conftest import SHARED, TRAINED

MISTRAL = "mistral-7b"
MISTRAL_FOLDER = SHARED / "tokenizers" / MISTRAL
BYTE_LEVEL = "byte level"
Tokenizers = Callable[[str], Any]
TEXTS = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("ab 你好🙂é\n\ufffd")),
    min_size=1,
    max_size=40,
)


@pytest.fixture(scope="session")
def tokenizer_of(find_model: Callable[[str], Path]) -> Callable[[str], Any]:
    import transformers

    @cache
    def find(name: str) -> Any:
        if name == BYTE_LEVEL:
            return transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level())
        folder = MISTRAL_FOLDER if name == MISTRAL else find_model(name)
        if not folder.is_dir():
            pytest.skip(f"the published tokenizer of {name} is not beside this checkout")
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)

    return find


def byte_level() -> Any:
    """GPT-2's scheme: each byte has a letter; here some tokens end inside a character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["你好吗 你们好 🙂🙃 hello there"] * 50, trainer)
    return tokenizer


def pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(token) for token in ids), detokenizer.finish()]


def added_text(tokenizer: Any, prompt: list[int], ids: list[int]) -> str:
    """The oracle: decode everything, and take off what the prompt alone gives."""
    whole: str = tokenizer.decode(prompt + ids, clean_up_tokenization_spaces=False)
    return whole[len(tokenizer.decode(prompt, clean_up_tokenization_spaces=False)) :]


@pytest.mark.parametrize("name", [MISTRAL, *TRAINED, BYTE_LEVEL])
@settings(deadline=None, max_examples=150)
@given(text=TEXTS)
def test_pieces_of_a_text_join_to_what_decoding_at_once_adds(
    tokenizer_of: Tokenizers, name: str, text: str
) -> None:
    tokenizer = tokenizer_of(name)
    prompt = tokenizer.encode("Once upon", add_special_tokens=False)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert "".join(pieces(tokenizer, ids)) == added_text(tokenizer, prompt, ids)


@settings(deadline=None, max_examples=300)
@given(ids=st.lists(st.integers(0, 339), max_size=60))
def test_random_byte_level_tokens_join_to_what_decoding_at_once_adds(
    tokenizer_of: Tokenizers, ids: list[int]
) -> None:
    tokenizer = tokenizer_of(BYTE_LEVEL)
    ids = [token for token in ids if token < len(tokenizer)]
    prompt = tokenizer.encode("a", add_special_tokens=False)
    assert "".join(pieces(tokenizer, ids)) == added_text(tokenizer, prompt, ids)


@pytest.mark.parametrize("name", TRAINED)
@settings(deadline=None, max_examples=300)
@given(data=st.binary(max_size=40))
def test_random_byte_tokens_join_to_their_utf8_with_bad_bytes_replaced(
    tokenizer_of: Tokenizers, name: str, data: bytes
) -> None:
    tokenizer = tokenizer_of(name)
    ids = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in data]
    assert "".join(pieces(tokenizer, ids)) == data.decode("utf-8", errors="replace")


@pytest.mark.parametrize("name", [*TRAINED, BYTE_LEVEL])
def test_no_piece_splits_a_character(tokenizer_of: Tokenizers, name: str) -> None:
    tokenizer = tokenizer_of(name)
    ids = tokenizer.encode("🙂你", add_special_tokens=False)
    assert len(ids) > 2  # or there is nothing to split
    assert "\ufffd" not in "".join(pieces(tokenizer, ids))
    assert {piece for piece in pieces(tokenizer, ids) if piece.strip()} <= {"🙂", "你", " 🙂"}


@pytest.mark.parametrize("name", TRAINED)
def test_unfinished_character_is_flushed_as_replacement_character(
    tokenizer_of: Tokenizers, name: str
) -> None:
    tokenizer = tokenizer_of(name)
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ("<0xE4>", "<0xBD>")]
    assert pieces(tokenizer, ids) == ["", "", "\ufffd"]


@pytest.mark.parametrize("name", TRAINED)
def test_valid_character_between_bad_bytes_survives(tokenizer_of: Tokenizers, name: str) -> None:
    tokenizer = tokenizer_of(name)
    data = b"\xff" + "你".encode() + b"\xff" + b"a"
    ids = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in data]
    assert "".join(pieces(tokenizer, ids)) == "\ufffd你\ufffda"


@pytest.mark.parametrize("name", [MISTRAL, made_model.NAME])
def test_first_piece_keeps_the_space_before_a_word(tokenizer_of: Tokenizers, name: str) -> None:
    tokenizer = tokenizer_of(name)
    there = tokenizer.convert_tokens_to_ids("▁there")
    assert pieces(tokenizer, [there]) == [" there", ""]


@pytest.mark.parametrize("name", TRAINED)
def test_special_tokens_have_no_text(tokenizer_of: Tokenizers, name: str) -> None:
    tokenizer = tokenizer_of(name)
    assert pieces(tokenizer, [1, 2, 300]) == ["", "", added_text(tokenizer, [300], [300]), ""]


@pytest.mark.parametrize("name", [MISTRAL, made_model.NAME, BYTE_LEVEL])
def test_bytes_of_tokens_joined_are_the_bytes_of_the_text(
    tokenizer_of: Tokenizers, name: str
) -> None:
    tokenizer, text = tokenizer_of(name), "x there 你好🙂é\n\u0416\U0001f9ff"
    detokenizer = Detokenizer(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False)
    found = b"".join(detokenizer.bytes_of(token) or b"?" for token in ids)
    assert found.strip() == text.encode()
    assert any(detokenizer.bytes_of(token) != detokenizer.name(token).encode() for token in ids)


def test_bytes_that_never_end_are_shown_in_bounded_steps(tokenizer_of: Tokenizers) -> None:
    tokenizer = tokenizer_of(BYTE_LEVEL)
    letters = dict(zip(tokenizer.get_vocab().values(), tokenizer.get_vocab(), strict=True))
    bad = next(i for i in letters if tokenizer.decode([i]) == "\ufffd" and len(letters[i]) == 1)
    detokenizer = Detokenizer(tokenizer)
    shown = "".join(detokenizer.push(bad) for _ in range(500))
    assert len(detokenizer.pending) <= 17
    assert len(shown + detokenizer.finish()) == len(tokenizer.decode([bad] * 500))


def slow_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """The oracle: after each character, is a stop string complete?"""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], True
    return text, False


@settings(max_examples=500)
@given(
    chunks=st.lists(st.text("ab#", max_size=4), max_size=12),
    stops=st.lists(st.text("ab#", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_cut_the_same_however_the_text_is_cut(
    chunks: list[str], stops: list[str]
) -> None:
    filter = StopStrings(stops)
    shown, stopped = "", False
    for chunk in chunks:
        text, stopped = filter.push(chunk)
        shown += text
        if stopped:
            break
    else:
        shown += filter.finish()
    assert (shown, stopped) == slow_stop("".join(chunks), stops)


def test_the_beginning_of_a_stop_string_is_held_back_and_no_more() -> None:
    filter = StopStrings(["### User:"])
    assert filter.push("Hello ##") == ("Hello ", False)
    assert filter.push("#") == ("", False)
    assert filter.push("# hm") == ("#### hm", False)
    assert filter.push("\n### User") == ("\n", False)
    assert filter.push(":") == ("", True)
