"""An answer to messages ends at any token that a file of the model names as an end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from neuralchat_lite.checkpoints.tokenizer import load_tokenizer
from neuralchat_lite.families.config_json import parse_architecture
from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.generation.prompt import Prompt, encode_prompt
from neuralchat_lite.generation.sequence import Sequence
from neuralchat_lite.generation.turn_ends import closing_id, turn_ends

from ..checkpoints import tokenizer_folders as made

TURN = "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
CLOSED = {
    "chatml": (TURN, "<|end|>"),
    "a space before": (TURN.replace("<|end|>", " <|end|>"), "<|end|>"),
    "end of text": (made.CHATML, "</s>"),
    "trimmed": (TURN.replace("m.content", "m.content | trim"), "<|end|>"),
    "opened alone": ("{% for m in messages %}<|start|>{{ m.content }}{% endfor %}", "<|start|>"),
    "plain text": ("{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n{% endfor %}", None),
    "words and spaces": ("{% for m in messages %}{{ m.content }}  word {% endfor %}", None),
    "no assistant": ("{{ messages[0].content }}", None),
    "refusing": ("{{ raise_exception('no') }}", None),
    "too large": ("{{ 'a' * 10 ** 10 }}", None),
    "none": (None, None),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Any:
    from tokenizers import AddedToken

    tokenizer = made.byte_level_style()
    marks = [AddedToken(mark, special=True) for mark in ("<|start|>", "<|end|>", "<|other|>")]
    tokenizer.add_tokens([*marks, AddedToken("word"), AddedToken("  ")])
    place = tmp_path_factory.mktemp("ends") / "model"
    return load_tokenizer(made.write_folder(place, tokenizer))


@pytest.mark.parametrize(("template", "token"), CLOSED.values(), ids=CLOSED)
def test_the_token_that_closes_a_turn_is_found_in_the_template(tokenizer, template, token):
    tokenizer.chat_template = template
    found = closing_id(tokenizer)
    assert found == (None if token is None else tokenizer.convert_tokens_to_ids(token))


def test_all_sources_are_named(tokenizer, tiny_config):
    tokenizer.chat_template = TURN
    config = tiny_config | {"eos_token_id": [2, 7]}
    architecture = parse_architecture(config, {"eos_token_id": 9})
    assert architecture.eos_ids == (9,)
    assert turn_ends(tokenizer, architecture) == {
        2: ["config.json", "the tokenizer's eos_token"],
        7: ["config.json"],
        9: ["generation_config.json"],
        tokenizer.convert_tokens_to_ids("<|end|>"): ["the chat template"],
    }


def test_messages_end_at_the_union_and_a_text_as_in_transformers(tokenizer, tiny_config):
    tokenizer.chat_template = TURN
    architecture = parse_architecture(tiny_config | {"eos_token_id": 7}, {"eos_token_id": 9})
    decoder: Any = SimpleNamespace(
        architecture=architecture, context_length=99, new_cache=lambda n: SimpleNamespace(length=0)
    )

    def ends(prompt: Prompt, **options: Any) -> set[int]:
        return {*Sequence(decoder, tokenizer, prompt, GenerationOptions(**options)).eos}

    asked = encode_prompt([{"role": "user", "content": "hi"}], tokenizer, 1000)
    assert ends(asked) == {2, 7, 9, tokenizer.convert_tokens_to_ids("<|end|>")}
    assert ends(asked, ignore_eos=True) == set()
    assert ends(encode_prompt("hi", tokenizer, 1000)) == {9}
