"""Prompts of every form, and conversations against answering each prompt anew."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BatchEncoding

from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.checkpoints.random_weights import RandomCheckpoint
from neuralchat_lite.checkpoints.tokenizer import load_tokenizer
from neuralchat_lite.errors import ConfigError, PromptError
from neuralchat_lite.generation.conversation import (
    Conversation,
    Prompt,
    common_prefix,
    encode_prompt,
    with_stops,
)
from neuralchat_lite.generation.loop import GenerationOptions, generate
from neuralchat_lite.models.build import load_decoder

VOCABULARY = 512
USER = {"role": "user", "content": "Hello"}
ANSWER = {"role": "assistant", "content": "Hi."}
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def tokenizer(shared_data: Path) -> Any:
    return load_tokenizer(shared_data / "models/stories260K")


class Counting:
    """A decoder that keeps count of the tokens it is fed."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        self.fed: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.decoder, name)

    def forward(self, ids: Sequence[int], cache: Any) -> torch.Tensor:
        self.fed.append(len(ids))
        logits: torch.Tensor = self.decoder.forward(ids, cache)
        return logits


@pytest.fixture
def decoder(shared_data: Path) -> Counting:
    checkpoint = open_checkpoint(shared_data / "models/stories260K")
    return Counting(load_decoder(checkpoint, compute_dtype="fp32"))


@pytest.fixture
def windowed() -> Counting:
    """A random decoder whose cache is a ring that soon forgets."""
    config = {
        "model_type": "mistral",
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "sliding_window": 8,
        "max_position_embeddings": 4096,
    }
    checkpoint = RandomCheckpoint(config, 0)
    return Counting(load_decoder(checkpoint, compute_dtype="fp32", context_length=4096))


def test_messages_take_the_neural_chat_form_without_bos(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be kind."}, USER, ANSWER, USER]
    prompt = encode_prompt(messages, tokenizer, VOCABULARY)
    assert tokenizer.decode(prompt.ids) == (
        "### System:\nBe kind.\n### User:\nHello\n### Assistant:\nHi.\n"
        "### User:\nHello\n### Assistant:\n"
    )
    assert prompt.ids[0] != tokenizer.bos_token_id
    assert prompt.stop == ("### User:", "### System:")


def test_without_a_system_message_there_is_no_system_block(tokenizer: Any) -> None:
    prompt = encode_prompt([USER], tokenizer, VOCABULARY)
    assert tokenizer.decode(prompt.ids) == "### User:\nHello\n### Assistant:\n"


def test_braces_in_a_message_are_only_text(tokenizer: Any) -> None:
    prompt = encode_prompt([{"role": "user", "content": "{0} {}"}], tokenizer, VOCABULARY)
    assert "{0} {}" in tokenizer.decode(prompt.ids)


def test_the_models_own_template_wins(tokenizer: Any) -> None:
    tokenizer.chat_template = TEMPLATE
    prompt = encode_prompt([USER, ANSWER, USER], tokenizer, VOCABULARY)
    text = "<user>Hello<assistant>Hi.<user>Hello<assistant>"
    assert list(prompt.ids) == tokenizer.encode(text, add_special_tokens=False)
    assert prompt.stop == ()


def test_a_template_that_refuses_is_a_prompt_error(tokenizer: Any) -> None:
    tokenizer.chat_template = TEMPLATE
    with pytest.raises(PromptError, match=r"no system\).*system, user; try without a system"):
        encode_prompt([{"role": "system", "content": "x"}, USER], tokenizer, VOCABULARY)


@pytest.mark.parametrize("template", ["{{ messages[0].content + 3 }}", "{{ 1/0 }}", "{% oops"])
def test_a_template_that_is_broken_is_a_prompt_error(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(PromptError, match=r"refuses these messages.*give token ids instead"):
        encode_prompt([USER], tokenizer, VOCABULARY)


def test_a_text_gets_the_special_tokens_of_the_tokenizer(tokenizer: Any) -> None:
    ids = (1, 403, 407, 261, 378)
    assert encode_prompt("Once upon a time", tokenizer, VOCABULARY) == Prompt(ids)


@pytest.mark.parametrize(
    "ids",
    [
        [1, 403],
        (1, 403),
        torch.tensor([1, 403]),
        torch.tensor([[1, 403]]),
        [[1, 403]],
        list(np.array([1, 403])),
        BatchEncoding({"input_ids": torch.tensor([[1, 403]])}),
    ],
    ids=["list", "tuple", "tensor", "batch of one", "list of one list", "numpy", "encoding"],
)
def test_token_ids_are_taken_as_they_are(tokenizer: Any, ids: Any) -> None:
    assert encode_prompt(ids, tokenizer, VOCABULARY) == Prompt((1, 403))


@pytest.mark.parametrize(
    ("prompt", "rule"),
    [
        ("", "empty text"),
        ([], "the prompt is empty"),
        (torch.tensor([]), "the prompt is empty"),
        (None, "got NoneType"),
        (3, "got int"),
        (b"ab", "got bytes"),
        ([1, 512], "token id 512 is outside the vocabulary of 512"),
        ([-1], "token id -1 is outside"),
        ([1.5], "must be integers, got 1.5"),
        ([True], "got True"),
        (["Hello"], "got 'Hello'"),
        ([[1], [2]], "got 2 lists of token ids: give one prompt at a time"),
        ("\ud800", "the prompt is no UTF-8 text at character 0"),
        ([{"role": "user", "content": "a\udcff"}], "message 0 is no UTF-8 text at character 1"),
        ([USER, {"role": "user"}], "message 1 must be"),
        ([USER, "x"], "message 1 must be"),
        ([{"role": "tool", "content": "x"}], "'tool', expected one of system, user, assistant"),
        ([{"role": "user", "content": None}], "content of type NoneType"),
        ([USER, USER], "turn 1 has the role 'user', expected 'assistant'"),
        ([ANSWER, USER], "turn 0 has the role 'assistant', expected 'user'"),
        ([USER, {"role": "system", "content": "x"}, USER], "turn 1 has the role 'system'"),
        ([USER, ANSWER], "last message must be the user's.*got 'assistant'"),
        ([{"role": "system", "content": "x"}], "last message must be the user's"),
        ([{"role": "user", "content": " \n"}], "last message is empty"),
    ],
)
def test_prompts_of_another_form_are_refused(tokenizer: Any, prompt: Any, rule: str) -> None:
    with pytest.raises(PromptError, match=rule):
        encode_prompt(prompt, tokenizer, VOCABULARY)


def test_template_stop_strings_are_added_to_those_asked_for() -> None:
    assert with_stops(GenerationOptions(stop="x"), ("y",)).stop == ("x", "y")


def test_common_prefix_is_as_long_as_both_agree() -> None:
    cases = {((), ()): 0, ((1, 2), (1, 2)): 2, ((1, 2, 3), (1, 2)): 2, ((1, 9), (1, 2, 3)): 1}
    assert {pair: common_prefix(*pair) for pair in cases} == cases


def anew(decoder: Any, tokenizer: Any, messages: list[dict[str, str]], **options: Any) -> str:
    """The oracle: answer the messages with an empty cache."""
    prompt = encode_prompt(messages, tokenizer, VOCABULARY)
    settings = with_stops(GenerationOptions.of(options), prompt.stop)
    return generate(decoder, tokenizer, prompt.ids, settings).text


def test_turns_answer_as_if_the_whole_conversation_were_fed_anew(
    decoder: Counting, tokenizer: Any
) -> None:
    talk = Conversation(decoder, tokenizer, "Tell stories.", max_new_tokens=20)
    for text in ("Once upon a time", "Lily", "What then?"):
        reply = talk.say(text)
        assert reply.text == anew(decoder, tokenizer, talk.messages[:-1], max_new_tokens=20)
    assert [m["role"] for m in talk.messages] == ["system", *["user", "assistant"] * 3]


def test_a_turn_feeds_only_what_is_new(decoder: Counting, tokenizer: Any) -> None:
    talk = Conversation(decoder, tokenizer, max_new_tokens=10)
    first = talk.say("Once upon a time there was a little girl named Lily")
    decoder.fed.clear()
    second = talk.say("More")
    assert second.timings.cached_tokens >= first.prompt_tokens
    assert decoder.fed[0] == second.prompt_tokens - second.timings.cached_tokens
    assert decoder.fed[0] < second.prompt_tokens / 2


def test_a_window_that_cannot_go_back_is_fed_anew(windowed: Counting, tokenizer: Any) -> None:
    options = {"max_new_tokens": 330, "ignore_eos": True}
    talk = Conversation(windowed, tokenizer, **options)
    for text in ("Once", "more", "again"):
        cache = talk.cache
        reply = talk.say(text)
        assert reply.text == anew(windowed, tokenizer, talk.messages[:-1], **options)
    assert cache is not talk.cache  # or the ring was never too short, and nothing was tested


def test_a_cancelled_turn_keeps_what_was_said(decoder: Counting, tokenizer: Any) -> None:
    talk = Conversation(decoder, tokenizer, max_new_tokens=30)
    pieces = talk.stream("Once upon a time")
    said = "".join(next(pieces).text for _ in range(8))
    pieces.close()  # type: ignore[attr-defined]
    assert said
    assert talk.messages[-1] == {"role": "assistant", "content": said}
    reply = talk.say("Go on")
    assert reply.text == anew(decoder, tokenizer, talk.messages[:-1], max_new_tokens=30)


def test_a_turn_without_an_answer_is_forgotten(decoder: Counting, tokenizer: Any) -> None:
    talk = Conversation(decoder, tokenizer, max_new_tokens=5, ignore_eos=True)
    pieces = talk.stream("Once", stop=list(string.printable))
    assert "".join(piece.text for piece in pieces) == ""  # it was fed and answered nothing
    assert talk.messages == []
    assert talk.say("Lily").text == anew(decoder, tokenizer, talk.messages[:-1], max_new_tokens=5)


def test_a_full_context_is_an_error_that_changes_nothing(decoder: Counting, tokenizer: Any) -> None:
    talk = Conversation(decoder, tokenizer, max_new_tokens=5)
    talk.say("Once")
    before = list(talk.messages)
    with pytest.raises(PromptError, match=r"tokens, the context has 512: shorten it"):
        talk.say("long " * 500)
    assert talk.messages == before
    assert talk.say("Lily").text == anew(decoder, tokenizer, talk.messages[:-1], max_new_tokens=5)


def test_two_answers_at_once_are_refused(decoder: Counting, tokenizer: Any) -> None:
    talk = Conversation(decoder, tokenizer)
    pieces = talk.stream("Once")
    next(pieces)
    with pytest.raises(PromptError, match="still answering"):
        talk.say("Twice")
    with pytest.raises(PromptError, match="still answering"):
        talk.reset()
    pieces.close()  # type: ignore[attr-defined]
    assert talk.say("Twice", max_new_tokens=3).text
    talk.reset()
    assert talk.messages == []


def test_a_message_that_cannot_be_sent_is_refused_at_once(
    decoder: Counting, tokenizer: Any
) -> None:
    talk = Conversation(decoder, tokenizer)
    for text in ("", "\udcff"):
        with pytest.raises(PromptError):
            talk.stream(text)  # nobody asks for a piece


def test_options_of_one_turn_win_over_those_of_the_conversation(
    decoder: Counting, tokenizer: Any
) -> None:
    talk = Conversation(decoder, tokenizer, max_new_tokens=3, ignore_eos=True)
    assert talk.say("Once", max_new_tokens=7).timings.new_tokens == 7
    assert talk.say("Twice").timings.new_tokens == 3


def test_reset_forgets_the_turns_and_keeps_the_system_message(
    decoder: Counting, tokenizer: Any
) -> None:
    talk = Conversation(decoder, tokenizer, "Be kind.", max_new_tokens=5)
    talk.say("Once")
    talk.reset()
    assert talk.messages == [{"role": "system", "content": "Be kind."}]
    assert talk.say("Lily").timings.cached_tokens == 0


def test_bad_options_are_refused_when_the_conversation_opens(
    decoder: Counting, tokenizer: Any
) -> None:
    with pytest.raises(ConfigError, match="unknown generation option"):
        Conversation(decoder, tokenizer, max_tokens=5)
