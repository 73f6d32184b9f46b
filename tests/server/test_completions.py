"""/v1/completions: whole and as a stream."""

from __future__ import annotations

import neuralchat_lite as ncl

from .calls import Client, error_of, events


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


def test_log_probabilities_of_a_prompt_are_refused_by_name(client: Client) -> None:
    refused = client.complete(echo=True, logprobs=1)
    assert refused.status_code == 400 and error_of(refused)["param"] == "echo"


def test_empty_prompts_are_a_400(client: Client) -> None:
    for prompt in ("", [], [[]], ["a", ""]):
        assert client.complete(prompt=prompt).status_code == 400
