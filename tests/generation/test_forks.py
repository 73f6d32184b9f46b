"""Several answers to one prompt, each against the same sequence alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.checkpoints.tokenizer import load_tokenizer
from neuralchat_lite.generation.forks import answers, fork
from neuralchat_lite.generation.loop import generate
from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.generation.prompt import Prompt, encode_prompt
from neuralchat_lite.generation.sequence import Reply, Sequence
from neuralchat_lite.models.build import load_decoder

NANO = Path(__file__).parents[2] / "examples/nano/model"
SAMPLED: dict[str, Any] = {
    "temperature": 8.0,
    "max_new_tokens": 20,
    "frequency_penalty": 0.5,
    "logprobs": True,
}


@pytest.fixture(scope="module")
def nano() -> tuple[Any, Any, Prompt]:
    decoder = load_decoder(open_checkpoint(NANO), compute_dtype="fp32")
    tokenizer = load_tokenizer(NANO)
    asked = [{"role": "user", "content": "calculate 100 + 520 + 60"}]
    return decoder, tokenizer, encode_prompt(asked, tokenizer, decoder.architecture.vocab_size)


def outcome(reply: Reply) -> tuple[Any, ...]:
    return reply.text, reply.token_ids, reply.finish_reason, reply.logprobs


@pytest.mark.parametrize("seed", [7, 2**64 - 2])
def test_answer_i_is_the_one_of_seed_plus_i_alone(nano: Any, seed: int) -> None:
    several = Sequence(*nano, GenerationOptions(**SAMPLED, n=4, seed=seed))
    found = [outcome(reply) for reply in answers(several)]
    seeds = [(seed + i) % 2**64 for i in range(4)]
    alone = [Sequence(*nano, GenerationOptions(**SAMPLED, seed=each)) for each in seeds]
    assert found == [outcome(generate(sequence)) for sequence in alone]
    assert len({ids for _, ids, *_ in found}) == 4


def test_without_a_seed_answers_differ(nano: Any) -> None:
    several = Sequence(*nano, GenerationOptions(**SAMPLED, n=3))
    assert len({reply.token_ids for reply in answers(several)}) == 3


def test_the_prompt_is_fed_once_and_its_pages_are_shared(nano: Any) -> None:
    decoder, tokenizer, prompt = nano
    one = Sequence(decoder, tokenizer, prompt, GenerationOptions(**SAMPLED, n=3, seed=0))
    decoder.forward(one.next_ids(), one.cache)
    first, second, third = fork(one, 3)
    assert first is one
    assert second.next_ids() == third.next_ids() == []
    pages = [sequence.cache.tables[0].pages for sequence in (first, second, third)]
    assert pages[0] and pages[0] == pages[1] == pages[2]
    assert first.clock.cached_tokens == 0
    assert second.clock.cached_tokens == len(prompt.ids)


def test_a_sequence_forks_before_its_prompt_is_fed_too(nano: Any) -> None:
    one = Sequence(*nano, GenerationOptions(**SAMPLED, n=2, seed=5))
    found = [outcome(generate(sequence)) for sequence in fork(one, 2)]
    again = Sequence(*nano, GenerationOptions(**SAMPLED, n=2, seed=5))
    assert found == [outcome(reply) for reply in answers(again)]
