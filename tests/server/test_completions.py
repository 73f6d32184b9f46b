"""/v1/completions: whole and as a stream."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import neuralchat_lite as ncl
from neuralchat_lite.server.answers import text_name

from .calls import Client, events


def test_texts_and_ids_are_continued_as_they_are(client: Client, nano: ncl.Model) -> None:
    text = "calculate 1 + 1"
    want = nano.generate(text, max_new_tokens=16).text
    for prompt in (text, nano.tokenizer.encode(text)):
        answer = client.complete(prompt=prompt).json()
        assert [choice["text"] for choice in answer["choices"]] == [want]
        assert answer["object"] == "text_completion"


def test_several_prompts_and_answers_are_numbered(client: Client) -> None:
    alone = [client.complete(prompt=text).json() for text in ("calculate 1", "calculate 2 + 3")]
    both = client.complete(prompt=["calculate 1", "calculate 2 + 3"], n=2).json()
    texts = [choice["text"] for choice in both["choices"]]
    one, two = (answer["choices"][0]["text"] for answer in alone)
    assert texts == [one, one, two, two]
    assert [choice["index"] for choice in both["choices"]] == [0, 1, 2, 3]
    counted = sum(answer["usage"]["prompt_tokens"] for answer in alone)
    assert both["usage"]["prompt_tokens"] == counted


def test_a_stream_says_what_the_whole_answer_says(client: Client) -> None:
    whole = client.complete(logprobs=1).json()["choices"][0]
    found = events(client.complete(stream=True, logprobs=1, stream_options={"include_usage": True}))
    assert found[-1]["choices"] == [] and found[-1]["usage"]["completion_tokens"] > 0
    parts = [one["choices"][0] for one in found[:-1]]
    assert "".join(part["text"] for part in parts) == whole["text"]
    assert parts[-1]["finish_reason"] == whole["finish_reason"]
    for name in ("tokens", "text_offset"):
        streamed = [one for part in parts for one in part["logprobs"][name]]
        assert streamed == whole["logprobs"][name]


def test_echo_begins_with_the_prompt(client: Client) -> None:
    plain, echoed = (client.complete(echo=echo).json()["choices"][0] for echo in (False, True))
    assert echoed["text"] == "calculate 1 + 1" + plain["text"]


def test_echo_with_logprobs_tells_those_of_the_prompt_too(client: Client, nano: ncl.Model) -> None:
    """What lm-evaluation-harness asks servers for."""
    prompts = ["calculate 1 + 1", "calculate 20 + 30"]
    asked: dict[str, Any] = {"prompt": prompts, "echo": True, "logprobs": 2, "n": 2}
    found = client.complete(**asked, max_tokens=3).json()["choices"]
    for index, choice in enumerate(found):
        score = nano.score(prompts[index // 2], top_logprobs=2)
        told, size = choice["logprobs"], len(score.token_ids)
        assert told["token_logprobs"][:size] == list(score.logprobs)
        assert told["tokens"][:size] == list(score.tokens)
        assert told["top_logprobs"][0] is None and told["token_logprobs"][0] is None
        assert all(len(top) == 2 for top in told["top_logprobs"][1:])
        assert len({len(values) for values in told.values()}) == 1
        for token, offset in list(zip(told["tokens"], told["text_offset"], strict=True))[1:]:
            assert choice["text"][offset:].startswith(token)
    streams = events(client.complete(**asked, max_tokens=3, stream=True))
    for index, choice in enumerate(found):
        parts = [one["choices"][0] for one in streams if one["choices"][0]["index"] == index]
        assert "".join(part["text"] for part in parts) == choice["text"]
        for name, values in choice["logprobs"].items():
            assert [value for part in parts for value in part["logprobs"][name]] == values


def test_a_prompt_of_ids_has_the_log_probabilities_of_these(
    client: Client, nano: ncl.Model
) -> None:
    ids = nano.tokenizer.encode("calculate 7 + 1", add_special_tokens=False)
    told = client.complete(prompt=ids, echo=True, logprobs=1, max_tokens=1).json()["choices"][0]
    score = nano.score(ids, top_logprobs=1)
    assert told["logprobs"]["token_logprobs"][: len(ids)] == list(score.logprobs)


def test_log_probabilities_of_parts_of_characters_have_their_bytes_for_names() -> None:
    handle: Any = SimpleNamespace(
        token_name=lambda token: {1: "a", 2: "\ufffd", 3: "\ufffd"}[token],
        token_bytes=lambda token: {1: b"a", 2: b"\xf0\x9f", 3: None}[token],
    )
    assert [text_name(handle, token) for token in (1, 2, 3)] == ["a", r"bytes:\xf0\x9f", "\ufffd"]


def test_empty_prompts_are_a_400(client: Client) -> None:
    for prompt in ("", [], [[]], ["a", ""]):
        assert client.complete(prompt=prompt).status_code == 400
