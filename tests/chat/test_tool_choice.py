"""Forced calls are calls, whatever the model would say."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from neuralchat_lite.chat.answers import AnswerParser, whole
from neuralchat_lite.chat.tool_choice import forced_call, free_calls
from neuralchat_lite.checkpoints.tokenizer import load_tokenizer
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.generation.form import form_of
from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.generation.text import Detokenizer

pytest.importorskip("llguidance", reason="needs the extra structured")
jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema")

NANO = Path(__file__).parents[2] / "examples/nano/model"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {
                "type": "object",
                "properties": {"at": {"$ref": "#/$defs/place"}, "long": {"type": "boolean"}},
                "required": ["at"],
                "$defs": {"place": {"enum": ["here", "there"]}},
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "wait"}},
]


def tokenizer_of(family: str, *special: str) -> Any:
    tokenizer: Any = load_tokenizer(NANO)
    if not hasattr(tokenizer, "get_response_parser"):
        pytest.skip("needs transformers >= 5.13")
    tokenizer.chat_template = family
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def drawn(tokenizer: Any, grammar: str, seed: int) -> Any:
    """An answer of tokens that are drawn among the allowed ones, taken apart."""
    random, text_of = Random(seed), Detokenizer(tokenizer)
    parser = AnswerParser.of(tokenizer, TOOLS)
    end = tokenizer.eos_token_id
    form = form_of(GenerationOptions(grammar=grammar), tokenizer, len(tokenizer), [end])
    assert form is not None
    deltas = []
    for _ in range(5000):
        token = random.choice(np.flatnonzero(form.allowed()).tolist())
        if token == end:
            break
        form.take(token)
        deltas += parser.feed(text_of.push(token), token)
        if form.ended:
            break
    assert form.matcher.is_accepting()
    return whole([*deltas, *parser.feed(text_of.finish()), *parser.close()])


FAMILIES = [("<tool_call>",), ("[TOOL_CALLS]",), ("[TOOL_CALLS]", "[TOOL_CALLS]"), ("",)]
FAMILIES[3] = ("<|python_tag|>", "<|python_tag|>")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: "+".join(family))
def test_a_forced_call_is_a_call_of_the_tool_with_arguments_of_its_schema(
    family: tuple[str, ...],
) -> None:
    tokenizer = tokenizer_of(*family)
    for seed in range(6):
        answer = drawn(tokenizer, forced_call(tokenizer, TOOLS, "look"), seed)
        assert answer.content is None
        [call] = answer.calls
        assert call.name == "look"
        jsonschema.validate(json.loads(call.arguments), TOOLS[0]["function"]["parameters"])  # type: ignore[index]
    names = set()
    for seed in range(12):
        [call] = drawn(tokenizer, forced_call(tokenizer, [TOOLS[0], NO_ARGUMENTS]), seed).calls
        names.add(call.name)
    assert names == {"look", "wait"}


NO_ARGUMENTS = {
    "type": "function",
    "function": {"name": "wait", "parameters": {"type": "object", "additionalProperties": False}},
}


def test_several_calls_may_be_forced() -> None:
    tokenizer = tokenizer_of("<tool_call>")
    grammar = forced_call(tokenizer, [NO_ARGUMENTS], several=True)
    counts = {len(drawn(tokenizer, grammar, seed).calls) for seed in range(9)}
    assert min(counts) >= 1 and len(counts) > 1


def test_a_name_that_no_tool_has_and_a_model_without_calls_are_refused() -> None:
    with pytest.raises(ConfigError, match="no tool 'fly': the tools are look, wait"):
        forced_call(tokenizer_of("<tool_call>"), TOOLS, "fly")
    with pytest.raises(ConfigError, match="cannot be forced"):
        forced_call(tokenizer_of("plain"), TOOLS)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: "+".join(family))
@pytest.mark.parametrize("several", [True, False])
def test_a_free_answer_is_a_text_or_calls_with_arguments_of_their_schema(
    family: tuple[str, ...], several: bool
) -> None:
    tokenizer = tokenizer_of(*family)
    grammar = free_calls(tokenizer, [TOOLS[0], NO_ARGUMENTS], several=several)
    begun = "" if family[0] == "<|python_tag|>" else f"So. {family[0]}"
    form = form_of(GenerationOptions(grammar=grammar), tokenizer, len(tokenizer), [2])
    assert form is not None
    for token in tokenizer.encode("Just 1 + 1 is [ text { here", add_special_tokens=False):
        form.take(token)
    assert form.matcher.is_accepting() and not form.ended
    form = form_of(GenerationOptions(grammar=grammar), tokenizer, len(tokenizer), [2])
    assert form is not None
    ids = tokenizer.encode(begun, add_special_tokens=False) if begun else []
    call = {"name": "look", tokenizer_arguments(family): {"at": "here"}}
    gap = {"<tool_call>": "\n", "[TOOL_CALLS]": "["}.get(family[0], "")
    ids += tokenizer.encode(gap + json.dumps(call), add_special_tokens=False)
    assert form.beginning(ids) == ids
    wrong = ids[: -len(tokenizer.encode('here"}}', add_special_tokens=False))]
    for token in wrong:
        form.take(token)
    nowhere = tokenizer.encode("nowhere", add_special_tokens=False)
    assert len(form.beginning(nowhere)) < len(nowhere), "the schema has another place"


def tokenizer_arguments(family: tuple[str, ...]) -> str:
    return "parameters" if family[0] == "<|python_tag|>" else "arguments"
