"""Prompts of every form."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BatchEncoding

from neuralchat_lite.errors import ConfigError, PromptError
from neuralchat_lite.generation.conversation import Conversation
from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.generation.prompt import PIECE, Prompt, encode_prompt

from .conftest import VOCABULARY

USER = {"role": "user", "content": "Hello"}
ANSWER = {"role": "assistant", "content": "Hi."}
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


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


def test_a_text_gets_the_special_tokens_of_the_tokenizer(tokenizer: Any, stories: Path) -> None:
    golden, *_ = json.loads((stories / "golden.json").read_text())
    assert golden["prompt"] == "Once upon a time"
    assert golden["input_ids"][0] == tokenizer.bos_token_id
    found = encode_prompt(golden["prompt"], tokenizer, VOCABULARY)
    assert found == Prompt(tuple(golden["input_ids"]))


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
        ("", "empty string"),
        ([], "the prompt is empty"),
        (torch.tensor([]), "the prompt is empty"),
        (None, "got NoneType"),
        (3, "got int"),
        (b"ab", "got bytes"),
        ([1, 512], "token id 512 is outside the vocabulary of 512"),
        ([-1], "token id -1 is outside"),
        ([1.5], "must be integers, got 1.5"),
        ([True], "got True"),
        (["Hello"], "a list with 1 prompts"),
        ([[1], [2]], "got 2 lists of token ids: give one prompt at a time"),
        ("\ud800", "the prompt is not valid UTF-8 at character 0"),
        ([{"role": "user", "content": "a\udcff"}], "message 0 is not valid UTF-8 at character 1"),
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


@pytest.mark.parametrize("several", [["a", "b"], ("a",), [[{"role": "user", "content": "a"}]]])
def test_several_prompts_are_refused_with_what_to_call(tokenizer: Any, several: Any) -> None:
    with pytest.raises(PromptError) as error:
        encode_prompt(several, tokenizer, VOCABULARY)
    said = str(error.value)
    assert f"got a list with {len(several)} prompts where one is asked for" in said
    assert "call generate or stream of the model" in said


class Counting:
    """A token is a letter. Remembers the longest text that it was given."""

    chat_template = None
    longest = 0

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.longest = max(self.longest, len(text))
        return [1] * len(text)


@pytest.mark.parametrize("prompt", ["a" * 5_000_000, [USER | {"content": "a" * 5_000_000}]])
def test_a_text_that_is_far_too_long_is_not_tokenized_whole(prompt: Any) -> None:
    tokenizer: Any = Counting()
    with pytest.raises(PromptError, match=r"the prompt has 50000\d\d characters, and the first"):
        encode_prompt(prompt, tokenizer, VOCABULARY, 8192)
    assert tokenizer.longest <= PIECE


@pytest.mark.parametrize("piece", [1, 7, 100])
def test_a_text_that_just_fits_is_never_refused(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    text = "Once upon  a time, in 2023.\n" * 40
    ids = tokenizer.encode(text)
    monkeypatch.setattr("neuralchat_lite.generation.prompt.PIECE", piece)
    assert list(encode_prompt(text, tokenizer, VOCABULARY, len(ids)).ids) == ids


def test_a_conversation_refuses_a_message_that_is_far_too_long() -> None:
    decoder: Any = SimpleNamespace(context_length=1000, new_cache=lambda: None)
    tokenizer: Any = Counting()
    with pytest.raises(PromptError, match="more tokens than the context of 1000"):
        Conversation(decoder, tokenizer).stream("a" * 200_000)


@pytest.mark.parametrize(
    "ids", [torch.empty(3, dtype=torch.long, device="meta"), torch.tensor([0, 1]).to_sparse()]
)
def test_ids_that_cannot_be_read_are_refused_by_the_kind_of_their_tensor(
    tokenizer: Any, ids: torch.Tensor
) -> None:
    with pytest.raises(PromptError, match=r"cannot be read from a Tensor .*list of integers"):
        encode_prompt(ids, tokenizer, VOCABULARY)  # type: ignore[arg-type]


THINKS = TEMPLATE + "{% if enable_thinking is defined and not enable_thinking %}<no>{% endif %}"


@pytest.mark.parametrize(
    ("template", "text"),
    [(None, "### User:\nHello\n### Assistant:\n"), (TEMPLATE, "<user>Hello<assistant>")],
)
def test_a_prefill_follows_where_the_answer_begins(
    tokenizer: Any, template: str | None, text: str
) -> None:
    tokenizer.chat_template = template
    options = GenerationOptions(prefill="Sure: ")
    prompt = encode_prompt([USER], tokenizer, VOCABULARY, options=options)
    assert list(prompt.ids) == tokenizer.encode(text + "Sure: ", add_special_tokens=False)
    assert prompt.text == "Sure: "


def test_variables_reach_the_chat_template(tokenizer: Any) -> None:
    tokenizer.chat_template = THINKS
    for thinks, end in ((True, ""), (False, "<no>")):
        options = GenerationOptions(chat_template_kwargs={"enable_thinking": thinks})
        prompt = encode_prompt([USER], tokenizer, VOCABULARY, options=options)
        wanted = "<user>Hello<assistant>" + end
        assert list(prompt.ids) == tokenizer.encode(wanted, add_special_tokens=False)


@pytest.mark.parametrize(
    ("template", "variables", "rule"),
    [
        (THINKS, {"enable_thinkin": 0}, r"not read \(did you mean 'enable_thinking'\?\)"),
        (THINKS, {"zzz": 0}, "'zzz', which .* does not read: it reads enable_thinking"),
        (TEMPLATE, {"tools": []}, "does not read: it reads none"),
        (TEMPLATE, {"add_generation_prompt": False}, "which this library sets"),
        (None, {"enable_thinking": 0}, "the model has no chat template"),
    ],
)
def test_variables_that_have_no_effect_are_refused_by_name(
    tokenizer: Any, template: str | None, variables: dict[str, Any], rule: str
) -> None:
    tokenizer.chat_template = template
    options = GenerationOptions(chat_template_kwargs=variables)
    with pytest.raises(ConfigError, match=rule):
        encode_prompt([USER], tokenizer, VOCABULARY, options=options)


@pytest.mark.parametrize("options", [{"prefill": "a"}, {"chat_template_kwargs": {"a": 1}}])
@pytest.mark.parametrize("prompt", ["text", [1, 2]])
def test_options_of_messages_are_refused_with_other_prompts(
    tokenizer: Any, options: dict[str, Any], prompt: Any
) -> None:
    with pytest.raises(ConfigError, match="needs a prompt of messages"):
        encode_prompt(prompt, tokenizer, VOCABULARY, options=GenerationOptions(**options))


PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endif %}{% endfor %}"
)
CALLS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.tool_calls }}{% endfor %}"
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}"
)
TWO = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": "f"}]}
RESULT = {"role": "tool", "content": "3"}


@pytest.mark.parametrize(
    ("template", "messages", "text"),
    [
        (CALLS, [USER, USER], "<user>Hello<user>Hello"),
        (CALLS, [USER, {"role": "system", "content": "x"}], "<user>Hello<system>x"),
        (CALLS, [{"role": "developer", "content": "x"}, USER], "<developer>x<user>Hello"),
        (CALLS, [USER, CALL, RESULT], "<user>Hello<assistant>[{'function': 'f'}]<tool>3"),
        (CALLS, [{"role": "user", "content": TWO}], "<user>a\nb"),
        (PARTS.replace("[", "").replace("]", ""), [{"role": "user", "content": TWO}], "<user>ab"),
        (PARTS, [{"role": "user", "content": TWO}], "<user>a\nb"),
    ],
)
def test_the_template_decides_which_messages_there_are(
    tokenizer: Any, template: str, messages: Any, text: str
) -> None:
    tokenizer.chat_template = template
    found = encode_prompt(messages, tokenizer, VOCABULARY)
    assert list(found.ids) == tokenizer.encode(text, add_special_tokens=False)


IMAGE = [{"type": "image_url", "image_url": {"url": "x"}}]


@pytest.mark.parametrize(
    ("template", "messages", "rule"),
    [
        (STRICT, [USER, USER], "refuses .*roles must alternate.*the roles were user, user; let"),
        (CALLS, [USER, ANSWER], "last message is the assistant's.* as `prefill`"),
        (CALLS, [{"role": "user", "content": IMAGE}], "message 0 has a part of the type 'image_"),
        (CALLS, [{"role": "user", "content": ["a"]}], "message 0 has a part 'a', expected"),
        (CALLS, [{"role": "user", "content": [{"type": "text"}]}], "a part without a text"),
        (CALLS, [{"role": "user", "content": []}], "content of type list, expected a text or"),
        (CALLS, [{"role": "user", "content": 3}], "content of type int, expected a text or"),
        (CALLS, [{"role": "user", "content": None}], "content of type NoneType"),
        (CALLS, [{"role": 3, "content": "a"}], "the role 3, expected a text"),
        (CALLS, [{"role": "user"}], "message 0 must be"),
        (CALLS, [{"role": "user", "content": " "}], "last message is empty"),
        (CALLS, [{"role": "user", "content": "a\udcff"}], "message 0 is not valid UTF-8"),
    ],
)
def test_messages_that_no_template_takes_are_refused(
    tokenizer: Any, template: str, messages: Any, rule: str
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(PromptError, match=rule):
        encode_prompt(messages, tokenizer, VOCABULARY)
