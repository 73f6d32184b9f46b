"""Conversations against answering each prompt anew."""

from __future__ import annotations

import string
from typing import Any

import pytest

from neuralchat_lite.errors import ConfigError, PromptError
from neuralchat_lite.generation import conversation
from neuralchat_lite.generation.conversation import Conversation
from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.generation.prompt import Prompt, encode_prompt
from neuralchat_lite.generation.sequence import Sequence
from neuralchat_lite.generation.several import generate

from .conftest import VOCABULARY, Counting


def anew(decoder: Any, tokenizer: Any, messages: list[dict[str, str]], **options: Any) -> str:
    """The oracle: answer the messages with an empty cache."""
    prompt = encode_prompt(messages, tokenizer, VOCABULARY)
    return generate(Sequence(decoder, tokenizer, prompt, GenerationOptions.of(options))).text


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
        cache = talk.prefix.cache
        reply = talk.say(text)
        assert reply.text == anew(windowed, tokenizer, talk.messages[:-1], **options)
    assert cache is not talk.prefix.cache  # or the ring was never too short, and nothing was tested


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


def test_a_turn_is_rendered_and_its_options_are_checked_once(
    decoder: Counting, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = Conversation(decoder, tokenizer, max_new_tokens=3)
    seen: list[str] = []
    encode, check = conversation.encode_messages, GenerationOptions.__post_init__

    def counted(*given: Any) -> Prompt:
        seen.append("rendered")
        return encode(*given)

    def checked(options: GenerationOptions) -> None:
        seen.append("checked")
        check(options)

    monkeypatch.setattr(conversation, "encode_messages", counted)
    monkeypatch.setattr(GenerationOptions, "__post_init__", checked)
    talk.say("Once")
    assert seen == ["rendered"]
    talk.say("More", max_new_tokens=4)
    assert seen == ["rendered", "checked", "rendered"]


def test_a_message_sent_before_an_earlier_one_was_answered_follows_that_answer(
    decoder: Counting, tokenizer: Any
) -> None:
    talk = Conversation(decoder, tokenizer, max_new_tokens=5)
    first, second = talk.stream("Once"), talk.stream("Lily")
    said = ["".join(piece.text for piece in pieces) for pieces in (first, second)]
    assert [message["content"] for message in talk.messages] == ["Once", said[0], "Lily", said[1]]
    assert said[1] == anew(decoder, tokenizer, talk.messages[:-1], max_new_tokens=5)


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


def test_a_prefill_is_part_of_what_was_said(decoder: Counting, tokenizer: Any) -> None:
    talk = Conversation(decoder, tokenizer, max_new_tokens=4)
    first = talk.say("Once", prefill="Lily ")
    second = talk.say("And", prefill="Tim ", echo=True)
    assert talk.messages[1]["content"] == "Lily " + first.text
    assert talk.messages[3]["content"] == second.text
    assert second.text.startswith("Tim ") and not first.text.startswith("Lily ")


def test_a_conversation_gives_one_answer(decoder: Counting, tokenizer: Any) -> None:
    talk = Conversation(decoder, tokenizer)
    with pytest.raises(ConfigError, match="n=2 asks for several answers"):
        talk.say("Once", n=2, temperature=1)
