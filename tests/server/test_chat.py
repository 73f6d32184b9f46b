"""/v1/chat/completions: whole and as a stream."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import neuralchat_lite as ncl
from neuralchat_lite.generation.logprobs import TopLogprob
from neuralchat_lite.generation.sequence import Piece

from .calls import ASK, Client, content, error_of, events


def test_an_answer_is_the_librarys(client: Client, nano: ncl.Model) -> None:
    reply = nano.generate(ASK, max_new_tokens=24)
    answer = client.chat().json()
    [choice] = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": reply.text, "refusal": None}
    assert choice["finish_reason"] == "length"
    assert answer["object"] == "chat.completion" and answer["model"] == "nano"
    usage = answer["usage"]
    assert usage["prompt_tokens"] == reply.prompt_tokens
    assert usage["completion_tokens"] == len(reply.token_ids)
    assert usage["total_tokens"] == reply.prompt_tokens + len(reply.token_ids)


def test_a_stream_says_what_the_whole_answer_says(client: Client) -> None:
    whole = client.chat(max_tokens=200).json()
    found = events(client.chat(max_tokens=200, stream=True))
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert content(found) == whole["choices"][0]["message"]["content"]
    assert {one["id"] for one in found} == {found[0]["id"]}
    reasons = [one["choices"][0]["finish_reason"] for one in found]
    assert reasons[-1] == whole["choices"][0]["finish_reason"]
    assert set(reasons[:-1]) == {None}
    assert not any("usage" in one for one in found)


def test_usage_comes_last_when_it_is_asked_for(client: Client) -> None:
    found = events(client.chat(stream=True, stream_options={"include_usage": True}))
    assert found[-1]["choices"] == []
    assert found[-1]["usage"]["completion_tokens"] == 24
    assert all(one["usage"] is None for one in found[:-1])


def test_remembered_tokens_are_reported(client: Client) -> None:
    ask = [{"role": "user", "content": "calculate " + "1 + " * 80 + "1"}]
    client.chat(messages=ask, max_tokens=1)
    again = client.chat(messages=ask, max_tokens=1).json()
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 64


def test_several_answers_have_seeds_of_their_own(client: Client, nano: ncl.Model) -> None:
    asked = {"n": 3, "temperature": 1.5, "seed": 7}
    choices = client.chat(**asked).json()["choices"]
    replies = nano.generate(ASK, n=3, temperature=1.5, seed=7, max_new_tokens=24)
    texts = [choice["message"]["content"] for choice in choices]
    assert texts == [reply.text for reply in replies]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    found = events(client.chat(**asked, stream=True))
    assert [content(found, index) for index in range(3)] == texts


def test_a_prompt_of_several_answers_is_counted_once(client: Client) -> None:
    one, three = (client.chat(n=n, temperature=1, seed=1).json()["usage"] for n in (1, 3))
    assert one["prompt_tokens"] == three["prompt_tokens"]


def test_logprobs_are_those_of_the_tokens(client: Client, nano: ncl.Model) -> None:
    reply = nano.generate(ASK, max_new_tokens=24, logprobs=True, top_logprobs=2)
    assert reply.logprobs is not None
    asked = {"logprobs": True, "top_logprobs": 2}
    found = client.chat(**asked).json()["choices"][0]["logprobs"]["content"]
    assert [one["logprob"] for one in found] == pytest.approx(reply.logprobs)
    assert all(len(one["top_logprobs"]) == 2 for one in found)
    assert "".join(one["token"] for one in found) == reply.text
    parts = events(client.chat(**asked, stream=True))
    streamed = [
        one
        for part in parts
        for choice in part["choices"]
        for one in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert [one["token"] for one in streamed] == [one["token"] for one in found]


def test_a_part_of_a_character_has_its_own_byte() -> None:
    from neuralchat_lite.server.answers import chat_logprobs

    known = {5: b"\xe2", 6: b"a", 7: None}
    handle = SimpleNamespace(token_name=lambda token: "\ufffd", token_bytes=known.get)
    pieces = [
        Piece("", 5, logprob=-1.0, top_logprobs=(TopLogprob(6, "a", -2.0),)),
        Piece("", 7, logprob=-1.0),
    ]
    answers: Any = SimpleNamespace(handles=[handle])
    first, second = chat_logprobs(answers, pieces)
    assert first.bytes == [0xE2] and first.top_logprobs[0].bytes == [ord("a")]
    assert second.bytes is None


def test_a_stop_text_ends_the_answer(client: Client) -> None:
    plain = client.chat().json()["choices"][0]["message"]["content"]
    stop = plain[10:16]
    stopped = client.chat(stop=stop).json()["choices"][0]
    assert stopped["message"]["content"] == plain[: plain.index(stop)]
    assert stopped["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "option",
    [
        {"frequency_penalty": 2.0},
        {"presence_penalty": 2.0},
        {"repetition_penalty": 5.0},
        {"logit_bias": {"100": 100}},
        {"top_k": 2},
        {"min_p": 0.5},
        {"seed": 8},
    ],
)
def test_an_option_reaches_the_sampler(
    client: Client, nano: ncl.Model, option: dict[str, Any]
) -> None:
    asked = {"temperature": 4.0, "seed": 7}
    plain, changed = (client.chat(**asked | more).json()["choices"][0] for more in ({}, option))
    want = nano.generate(ASK, max_new_tokens=24, **asked | option)
    assert changed["message"]["content"] == want.text != plain["message"]["content"]


def test_the_older_name_of_the_limit_is_understood(client: Client) -> None:
    new = {"max_tokens": None, "max_completion_tokens": 3}
    assert client.chat(**new).json()["usage"]["completion_tokens"] == 3
    refused = client.chat(max_tokens=4, max_completion_tokens=3)
    assert refused.status_code == 400 and error_of(refused)["param"] == "max_tokens"


def test_filters_beside_temperature_0_are_no_error(client: Client) -> None:
    plain, filtered = client.chat().json(), client.chat(top_p=0.5, top_k=5, min_p=0.1).json()
    assert plain["choices"] == filtered["choices"]


def test_top_p_of_0_takes_the_likeliest_token(client: Client) -> None:
    plain, narrow = client.chat().json(), client.chat(top_p=0, temperature=1).json()
    assert plain["choices"] == narrow["choices"]


def test_a_last_message_of_the_assistant_is_gone_on_with(client: Client) -> None:
    whole = client.chat().json()["choices"][0]["message"]["content"]
    begun = [*ASK, {"role": "assistant", "content": whole[:7]}]
    rest = client.chat(messages=begun, continue_final_message=True).json()
    assert (whole[:7] + rest["choices"][0]["message"]["content"]).startswith(whole)
    vllms = client.chat(messages=begun, continue_final_message=True, add_generation_prompt=False)
    assert vllms.json()["choices"] == rest["choices"]
    refused = client.chat(messages=begun)
    assert refused.status_code == 400
    assert "continue_final_message" in error_of(refused)["message"]


@pytest.mark.parametrize("opposites", [(True, True), (False, False), (False, None)])
def test_an_answer_either_begins_or_goes_on(
    client: Client, opposites: tuple[bool, bool | None]
) -> None:
    begins, goes_on = opposites
    refused = client.chat(add_generation_prompt=begins, continue_final_message=goes_on)
    assert refused.status_code == 400 and error_of(refused)["param"] == "add_generation_prompt"
    assert client.chat(add_generation_prompt=True).status_code == 200


def test_a_prompt_longer_than_the_context_is_a_400_also_in_a_stream(client: Client) -> None:
    ask = [{"role": "user", "content": "calculate " + "1 + " * 1000}]
    for stream in (False, True):
        refused = client.chat(messages=ask, stream=stream)
        assert refused.status_code == 400
        assert error_of(refused)["code"] == "context_length_exceeded"


def test_roles_that_the_template_refuses_are_a_400(client: Client) -> None:
    refused = client.chat(messages=[{"role": "assistant", "content": "a"}])
    assert refused.status_code == 400 and "message" in error_of(refused)["message"]


def test_pings_come_while_nothing_else_does(
    client_of: type[Client], nano: ncl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    held = threading.Event()
    step = nano.scheduler.batch.step

    def slow_step() -> bool:
        held.wait(0.3)
        held.set()  # the first step alone
        return step()

    monkeypatch.setattr(nano.scheduler.batch, "step", slow_step)
    answer = client_of(ping_interval=0.05).chat(stream=True)
    assert ": still computing\n\n" in answer.text
    assert content(events(answer))
