"""Options check themselves."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.generation.options import (
    GenerationKeywords,
    GenerationOptions,
    options_of_answers,
)

Options = GenerationOptions


def test_a_single_stop_string_may_be_given_bare() -> None:
    assert Options(stop="###").stop == ("###",)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a positive integer, got 0"),
        ({"max_new_tokens": -1}, "got -1"),
        ({"max_new_tokens": 2.0}, "got 2.0"),
        ({"max_new_tokens": True}, "got True"),
        ({"temperature": -0.1}, "temperature must be"),
        ({"temperature": 1e-7}, "0 (greedy) or a finite number >= 1e-6, got 1e-07"),
        ({"temperature": math.nan}, "temperature must be"),
        ({"temperature": math.inf}, "temperature must be"),
        ({"temperature": "hot"}, "got 'hot'"),
        ({"temperature": 1, "top_k": -1}, "top_k must be"),
        ({"temperature": 1, "top_p": 0}, "top_p must be"),
        ({"temperature": 1, "top_p": math.nan}, "top_p must be"),
        ({"temperature": 1, "top_p": 1.1}, "top_p must be"),
        ({"temperature": 1, "min_p": math.nan}, "min_p must be"),
        ({"temperature": 1, "min_p": 2}, "min_p must be"),
        ({"repetition_penalty": 0}, "repetition_penalty must be"),
        ({"repetition_penalty": 1e-45}, "repetition_penalty must be"),
        ({"temperature": 10**400}, "temperature must be"),
        ({"repetition_penalty": math.nan}, "repetition_penalty must be"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**64}, "seed must be"),
        ({"stop": ("",)}, "stop must be"),
        ({"stop": 3}, "stop must be"),
        ({"stop": ("a", 3)}, "stop must be"),
        ({"ignore_eos": 1}, "ignore_eos must be"),
        ({"min_new_tokens": -1}, "min_new_tokens must be"),
        ({"min_new_tokens": 5, "max_new_tokens": 4}, "must be at most max_new_tokens, got 5 and 4"),
        ({"presence_penalty": 2.1}, "presence_penalty must be a number from -2 to 2"),
        ({"frequency_penalty": math.nan}, "frequency_penalty must be"),
        ({"logit_bias": {1: 101}}, "logit_bias must be a dictionary of token ids to numbers"),
        ({"logit_bias": {-1: 1}}, "got {-1: 1}"),
        ({"logit_bias": {"a": 1}}, "logit_bias must be"),
        ({"logit_bias": [1]}, "logit_bias must be"),
        ({"logits_processors": [3]}, "logits_processors must be functions of (ids, scores)"),
        ({"logits_processors": print}, "logits_processors must be"),
        ({"logprobs": 5}, "logprobs must be True or False, got 5"),
        ({"top_logprobs": 5}, "top_logprobs=5 would have no effect without logprobs"),
        ({"n": 0, "temperature": 1}, "n must be a positive integer, got 0"),
        ({"n": 2}, "the same answer 2 times with temperature 0"),
        ({"prefill": 3}, "prefill must be a text, got 3"),
        ({"echo": "yes"}, "echo must be True or False"),
        ({"chat_template_kwargs": {1: 2}}, "chat_template_kwargs must be a dictionary of names"),
        ({"top_k": 5}, "top_k would have no effect with temperature 0"),
        ({"top_p": 0.5, "min_p": 0.1}, "top_p, min_p would have no effect"),
        (
            {"top_n": 5},
            "unknown generation option top_n (did you mean 'top_p'?): expected",
        ),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError) as error:
        Options.of(options)
    assert rule in str(error.value)


def test_the_keywords_that_an_editor_completes_are_the_options() -> None:
    options = [field.name for field in dataclasses.fields(GenerationOptions)]
    assert list(GenerationKeywords.__annotations__) == options


def test_biases_are_plain_numbers_and_their_ids_may_be_what_json_has() -> None:
    given: dict[Any, Any] = {"7": np.float32(0.5), np.int64(3): torch.tensor(-1.0), 2: 1}
    assert Options(logit_bias=given).logit_bias == {7: 0.5, 3: -1.0, 2: 1}
    assert Options(logit_bias=None).logit_bias == Options().logit_bias == {}


def test_scalars_of_numpy_and_torch_are_the_numbers_that_they_are() -> None:
    given: dict[str, Any] = {
        "max_new_tokens": np.int64(5),
        "temperature": np.float32(0.5),
        "top_k": torch.tensor(7),
        "top_p": torch.tensor(0.25),
        "seed": np.uint64(2**63),
        "ignore_eos": np.bool_(True),
        "min_p": np.array(0.125),
    }
    plain = {"max_new_tokens": 5, "temperature": 0.5, "top_k": 7, "top_p": 0.25, "seed": 2**63}
    options = Options.of(given)
    assert options == Options(**plain, ignore_eos=True, min_p=0.125)
    for name, value in dataclasses.asdict(options).items():
        assert type(value) is type(getattr(Options(**plain, ignore_eos=True), name))
    for wrong in (np.array([5]), torch.tensor([5]), np.float32(5), np.bool_(True)):
        with pytest.raises(ConfigError, match="max_new_tokens must be a positive integer"):
            Options(max_new_tokens=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("max_tokens", "max_new_tokens"),
        ("max_length", "max_new_tokens"),
        ("max_new_token", "max_new_tokens"),
        ("temprature", "temperature"),
        ("topk", "top_k"),
        ("stop_strings", "stop"),
        ("do_sample", "temperature"),
        ("min_tokens", "min_new_tokens"),
        ("num_return_sequences", "n"),
        ("enable_thinking", "chat_template_kwargs"),
    ],
)
def test_an_unknown_option_names_the_one_that_is_meant(given: str, meant: str) -> None:
    for take in (Options.of, Options().but):
        with pytest.raises(ConfigError, match=rf"{given} \(did you mean '{meant}'\?\)"):
            take({given: 1})
    with pytest.raises(ConfigError, match="option xyz: expected"):
        Options.of({"xyz": 1})


@pytest.mark.parametrize("seed", [7, 2**64 - 2])
def test_answer_i_has_seed_plus_i(seed: int) -> None:
    asked = GenerationOptions(temperature=2.0, n=4, seed=seed, max_new_tokens=9)
    found = options_of_answers(asked)
    assert [one.seed for one in found] == [(seed + i) % 2**64 for i in range(4)]
    assert {(one.n, one.temperature, one.max_new_tokens) for one in found} == {(1, 2.0, 9)}


def test_without_a_seed_each_draws_its_own() -> None:
    asked = GenerationOptions(temperature=2.0, n=3)
    assert [one.seed for one in options_of_answers(asked)] == [None] * 3
    assert options_of_answers(GenerationOptions()) == [GenerationOptions()]
