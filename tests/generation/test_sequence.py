"""Sequences driven by hand: what a scheduler does, against each alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.checkpoints.tokenizer import load_tokenizer
from neuralchat_lite.errors import CheckpointError, ConfigError
from neuralchat_lite.generation.loop import fold
from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.generation.prompt import Prompt, encode_prompt
from neuralchat_lite.generation.sequence import Piece, Reply, Sequence
from neuralchat_lite.generation.several import generate
from neuralchat_lite.models.build import load_decoder

Options = GenerationOptions
NANO = Path(__file__).parents[2] / "examples/nano/model"


def step(decoder: Any, sequences: list[Sequence]) -> list[Piece]:
    """Feed all of them together and let each choose."""
    caches = [sequence.cache for sequence in sequences]
    logits = decoder.forward_batch([sequence.next_ids() for sequence in sequences], caches)
    return [one.accept(rows[0]) for one, rows in zip(sequences, logits, strict=True)]


def together(decoder: Any, sequences: list[Sequence]) -> list[Reply]:
    """Each one joins a step later than the one before it, and leaves when it has ended."""
    pieces: dict[Sequence, list[Piece]] = {one: [] for one in sequences}
    waiting, running = list(sequences), list[Sequence]()
    while waiting or running:
        running += waiting[:1]
        del waiting[:1]
        for one, piece in zip(running, step(decoder, running), strict=True):
            pieces[one].append(piece)
        running = [one for one in running if not one.finished]
    return [fold(pieces[one]) for one in sequences]


def outcome(reply: Reply) -> tuple[Any, ...]:
    costs = reply.timings
    counts = (costs.prompt_tokens, costs.cached_tokens, costs.new_tokens)
    said = (reply.text, reply.token_ids, reply.finish_reason)
    return *said, counts, costs.bytes_per_token, reply.logprobs


def test_sequences_that_are_fed_together_give_what_each_gives_alone() -> None:
    decoder = load_decoder(open_checkpoint(NANO), compute_dtype="fp32")
    tokenizer: Any = load_tokenizer(NANO)
    asked: list[tuple[Any, Options]] = [
        ([{"role": "user", "content": "calculate 100 + 520 + 60"}], Options(max_new_tokens=40)),
        ("### User:\ncalculate 7", Options(max_new_tokens=30, temperature=1.5, seed=3)),
        ("calculate", Options(max_new_tokens=9, repetition_penalty=1.3, stop=["zzz"])),
        ("calculate", Options(max_new_tokens=8, frequency_penalty=0.9, logprobs=True)),
        ([{"role": "user", "content": "calculate 12 + 30"}], Options(stop="4")),
    ]

    def sequences() -> list[Sequence]:
        vocabulary = decoder.architecture.vocab_size
        prompts = [encode_prompt(prompt, tokenizer, vocabulary) for prompt, _ in asked]
        return [
            Sequence(decoder, tokenizer, prompt, options)
            for prompt, (_, options) in zip(prompts, asked, strict=True)
        ]

    alone = [outcome(generate(sequence)) for sequence in sequences()]
    assert [outcome(reply) for reply in together(decoder, sequences())] == alone
    assert len({token_ids for _, token_ids, *_ in alone}) == len(asked)
    assert {"eos", "length", "stop"} == {reason for _, _, reason, *_ in alone}


def sequence(decoder: Any, tokenizer: Any, *ids: int, **options: Any) -> Sequence:
    return Sequence(decoder, tokenizer, Prompt(ids), Options(**options))


def test_an_error_of_one_sequence_ends_that_one_alone(scripted: Any) -> None:
    decoder, tokenizer = scripted("hello world")
    broken = sequence(decoder, tokenizer, 1, 2, max_new_tokens=5)
    sound = sequence(decoder, tokenizer, 3, max_new_tokens=5)
    pieces = step(decoder, [broken, sound])[1:]
    decoder.forward(broken.next_ids(), broken.cache)
    with pytest.raises(CheckpointError, match="3 tokens are NaN"):
        broken.accept(torch.full((128,), math.nan))
    assert broken.finished
    assert isinstance(broken.error, CheckpointError)
    assert broken.finish_reason is None
    while not sound.finished:
        pieces += step(decoder, [sound])
    assert (fold(pieces).text, sound.finish_reason, sound.error) == ("hello", "length", None)


def test_what_comes_next_is_what_the_cache_does_not_hold(scripted: Any) -> None:
    """So a sequence that has lost a part of its cache is fed it again."""
    decoder, tokenizer = scripted("hello")
    one = sequence(decoder, tokenizer, 1, 2, 3)
    assert one.next_ids() == [1, 2, 3]
    decoder.forward([1], one.cache)
    assert one.next_ids() == [2, 3]
    decoder.forward([2, 3], one.cache)
    assert one.next_ids() == []
    token = one.accept(torch.eye(128)[ord("h")]).token_id
    assert one.next_ids() == [token] == [ord("h")]
    one.cache.tokens.clear()
    assert one.next_ids() == [1, 2, 3, token]


def test_a_sequence_tells_how_it_has_ended(scripted: Any) -> None:
    decoder, tokenizer = scripted("hi\0there")
    one = sequence(decoder, tokenizer, 1)
    pieces = []
    while not one.finished:
        assert one.finish_reason is one.timings is None
        pieces += step(decoder, [one])
    assert (one.finish_reason, one.ids) == ("eos", [1, *b"hi\0"])
    assert pieces[-1].timings is one.timings is not None
    assert one.timings.new_tokens == 3


def test_template_stop_strings_are_added_to_those_asked_for(scripted: Any) -> None:
    decoder, tokenizer = scripted("hello")
    one = Sequence(decoder, tokenizer, Prompt((1,), stop=("y",)), Options(stop="x"))
    assert one.visible.stops == ("x", "y")


def run(decoder: Any, one: Sequence) -> list[Piece]:
    pieces: list[Piece] = []
    while not one.finished:
        pieces += step(decoder, [one])
    return pieces


def test_logprobs_are_of_the_models_own_distribution(scripted: Any) -> None:
    """Whatever penalties, biases and temperature make of it."""
    decoder, tokenizer = scripted("hello", noise=1.0)
    changed = {"temperature": 0.5, "seed": 1, "logit_bias": {104: 50}, "presence_penalty": 1}
    options = {"max_new_tokens": 4, "logprobs": True, "top_logprobs": 2}
    reply = fold(run(decoder, sequence(decoder, tokenizer, 1, **changed, **options)))
    assert reply.text == "hhhh"
    assert reply.logprobs and reply.top_logprobs
    cache = decoder.new_cache()
    for place, token in enumerate(reply.token_ids):
        logits = decoder.forward([token], cache).double()
        wanted = logits.log_softmax(-1)
        assert reply.logprobs[place] == pytest.approx(float(wanted[token]), abs=1e-5)
        best = int(wanted.argmax())
        found = reply.top_logprobs[place][0]
        assert found[:2] == (best, chr(best))
        assert found.logprob == pytest.approx(float(wanted[best]), abs=1e-5)
        assert len(reply.top_logprobs[place]) == 2


def test_logprobs_come_only_when_asked_for(scripted: Any) -> None:
    decoder, tokenizer = scripted("hello")
    pieces = run(decoder, sequence(decoder, tokenizer, 1, max_new_tokens=2))
    assert {piece.logprob for piece in pieces} == {None}
    assert fold(pieces).logprobs is fold(pieces).top_logprobs is None
    only = fold(run(decoder, sequence(decoder, tokenizer, 1, max_new_tokens=2, logprobs=True)))
    assert only.logprobs and only.top_logprobs == ((), ())


def test_an_answer_goes_on_past_its_ends_until_it_is_long_enough(scripted: Any) -> None:
    decoder, tokenizer = scripted("hi\0there you\0")
    asked = {"min_new_tokens": 8, "stop": ["th", "y"]}
    one = sequence(decoder, tokenizer, 1, **asked)
    pieces = run(decoder, one)
    text = fold(pieces).text
    assert (text[:2], text[3:], one.finish_reason) == ("hi", "there ", "stop")
    assert "\0" not in text
    assert fold(run(decoder, sequence(decoder, tokenizer, 1, stop=["th"]))).finish_reason == "eos"


def test_an_answer_that_echoes_begins_with_the_prompt(scripted: Any) -> None:
    decoder, tokenizer = scripted("hello")
    asked: dict[str, Any] = {"echo": True, "max_new_tokens": 5, "stop": "ab"}
    text = encode_prompt("ab", tokenizer, 128)
    pieces = run(decoder, Sequence(decoder, tokenizer, text, Options(**asked)))
    assert [piece.text for piece in pieces] == ["abh", "e", "l", "l", "o"]
    ids = sequence(decoder, tokenizer, *b"ab", **asked)
    assert fold(run(decoder, ids)).text == "abhello"
    messages = [{"role": "user", "content": "ab"}]
    begun = Options(**asked, prefill="I say ")
    prompt = encode_prompt(messages, tokenizer, 128, options=begun)
    assert fold(run(decoder, Sequence(decoder, tokenizer, prompt, begun))).text == "I say hello"


def test_a_processor_that_raises_ends_its_own_sequence_alone(scripted: Any) -> None:
    decoder, tokenizer = scripted("hello")

    class Own(Exception):
        pass

    def raising(ids: Any, scores: Any) -> Any:
        raise Own("mine")

    broken = sequence(decoder, tokenizer, 1, logits_processors=[raising])
    sound = sequence(decoder, tokenizer, 2, max_new_tokens=5)
    logits = decoder.forward_batch([[1], [2]], [broken.cache, sound.cache])
    with pytest.raises(Own, match="mine"):
        broken.accept(logits[0][0])
    assert isinstance(broken.error, Own) and broken.finished
    pieces = [sound.accept(logits[1][0]), *run(decoder, sound)]
    assert fold(pieces).text == "hello"


def test_a_bias_outside_the_vocabulary_is_refused(scripted: Any) -> None:
    decoder, tokenizer = scripted("hello")
    with pytest.raises(ConfigError, match="token id 128, outside the vocabulary of 128"):
        sequence(decoder, tokenizer, 1, logit_bias={128: 1})
