"""The decode loop, on a decoder whose logits are written down."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from neuralchat_lite.errors import CheckpointError, ConfigError, PromptError
from neuralchat_lite.generation.loop import (
    Chooser,
    GenerationOptions,
    Timings,
    generate,
    stream,
)

from ..patience import patience

Options = GenerationOptions
VOCABULARY = 128  # ASCII; token 0 ends the text


class LetterTokenizer:
    """A token is a letter."""

    all_special_ids = (0,)
    chat_template = None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(chr(token) for token in ids)

    def convert_ids_to_tokens(self, token: int) -> str:
        return chr(token)

    def convert_tokens_to_ids(self, token: str) -> int | None:
        return ord(token) if len(token) == 1 else None


class TokenList:
    """A cache that only remembers which tokens it was fed."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.script_begins: int | None = None

    @property
    def length(self) -> int:
        return len(self.tokens)


class ScriptedDecoder:
    """Finds the letters of its script likeliest, one after the other, behind any prompt."""

    def __init__(self, script: str, context_length: int, noise: float) -> None:
        self.architecture = SimpleNamespace(eos_ids=(0,), max_positions=1000)
        self.script, self.context_length, self.noise = script, context_length, noise
        self.calls = 0
        self.interrupt_at: int | None = None

    def new_cache(self, capacity: int = 256) -> TokenList:
        return TokenList()

    def forward(self, ids: list[int], cache: TokenList) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.interrupt_at:
            raise KeyboardInterrupt
        cache.tokens += ids
        assert cache.length <= self.context_length
        if cache.script_begins is None:
            cache.script_begins = cache.length
        letter = self.script[(cache.length - cache.script_begins) % len(self.script)]
        ramp = torch.linspace(0, self.noise, VOCABULARY)
        ramp[ord(letter)] = 5.0
        return ramp

    def bytes_per_token(self, context: int) -> int:
        return 1000 + context


@pytest.fixture
def scripted() -> Callable[..., tuple[ScriptedDecoder, LetterTokenizer]]:
    def make(script: str, context_length: int = 100, noise: float = 0.0) -> Any:
        return ScriptedDecoder(script, context_length, noise), LetterTokenizer()

    return make


def test_greedy_follows_the_likeliest_token(scripted: Any) -> None:
    decoder, tokenizer = scripted("hello world")
    reply = generate(decoder, tokenizer, [1, 2], Options(max_new_tokens=5))
    assert (reply.text, reply.finish_reason, len(reply.token_ids)) == ("hello", "length", 5)
    assert reply.prompt_tokens == 2


def test_generate_is_stream_joined(scripted: Any) -> None:
    decoder, tokenizer = scripted("hello world")
    pieces = list(stream(decoder, tokenizer, [1], Options(max_new_tokens=7)))
    reply = generate(decoder, tokenizer, [1], Options(max_new_tokens=7))
    assert "".join(piece.text for piece in pieces) == reply.text
    assert tuple(piece.token_id for piece in pieces) == reply.token_ids
    assert [piece.finish_reason for piece in pieces] == [None] * 6 + ["length"]


def test_end_of_text_ends_without_a_text(scripted: Any) -> None:
    decoder, tokenizer = scripted("hi\0there")
    reply = generate(decoder, tokenizer, [1], Options(max_new_tokens=20))
    assert (reply.text, reply.finish_reason, reply.token_ids[-1]) == ("hi", "eos", 0)


def test_ignore_eos_goes_on(scripted: Any) -> None:
    decoder, tokenizer = scripted("hi\0there")
    reply = generate(decoder, tokenizer, [1], Options(max_new_tokens=8, ignore_eos=True))
    assert (reply.text, reply.finish_reason) == ("hithere", "length")


def test_stop_string_over_several_tokens_ends_and_is_not_shown(scripted: Any) -> None:
    decoder, tokenizer = scripted("one, two, three")
    pieces = list(stream(decoder, tokenizer, [1], Options(stop=(", th", "zzz"))))
    assert "".join(piece.text for piece in pieces) == "one, two"
    assert pieces[-1].finish_reason == "stop"
    shown = ""
    for piece in pieces:
        shown += piece.text
        assert not shown.endswith(",") or "one, two".startswith(shown)


def test_held_back_text_is_flushed_at_the_end(scripted: Any) -> None:
    decoder, tokenizer = scripted("one, t")
    reply = generate(decoder, tokenizer, [1], Options(max_new_tokens=6, stop=(", two",)))
    assert (reply.text, reply.finish_reason) == ("one, t", "length")


def test_a_single_stop_string_may_be_given_bare() -> None:
    assert Options(stop="###").stop == ("###",)


def test_full_context_ends_with_its_own_reason(scripted: Any) -> None:
    decoder, tokenizer = scripted("hello world", context_length=6)
    cache = decoder.new_cache()
    pieces = list(stream(decoder, tokenizer, [1, 2, 3], Options(), cache))
    assert pieces[-1].finish_reason == "context"
    assert len(pieces) == 4  # three are fed again and fill the context, the fourth is not
    assert cache.length == 6


def test_prompt_as_long_as_the_context_still_gets_one_token(scripted: Any) -> None:
    decoder, tokenizer = scripted("hello", context_length=3)
    reply = generate(decoder, tokenizer, [1, 2, 3], Options())
    assert (reply.text, reply.finish_reason) == ("h", "context")


@pytest.mark.parametrize(("ids", "match"), [([], "no tokens"), ([1] * 7, "7 tokens.*has 6")])
def test_impossible_prompts_are_refused_before_the_first_piece(
    scripted: Any, ids: list[int], match: str
) -> None:
    decoder, tokenizer = scripted("hello", context_length=6)
    with pytest.raises(PromptError, match=match):
        stream(decoder, tokenizer, ids, Options())


def test_closing_cancels_and_leaves_the_cache_with_what_was_fed(scripted: Any) -> None:
    decoder, tokenizer = scripted("hello world")
    cache = decoder.new_cache()
    pieces = stream(decoder, tokenizer, [1, 2], Options(), cache)
    tokens = [next(pieces).token_id for _ in range(3)]
    pieces.close()  # type: ignore[attr-defined]
    assert cache.tokens == [1, 2, *tokens[:2]]  # the third was chosen, not fed
    assert decoder.calls == 3


def test_nothing_runs_before_the_first_piece_is_asked_for(scripted: Any) -> None:
    decoder, tokenizer = scripted("hello")
    stream(decoder, tokenizer, [1], Options())
    assert decoder.calls == 0


def test_interrupted_forward_leaves_what_was_fed(scripted: Any) -> None:
    decoder, tokenizer = scripted("hello")
    decoder.interrupt_at = 3
    cache = decoder.new_cache()
    with pytest.raises(KeyboardInterrupt):
        list(stream(decoder, tokenizer, [1, 2], Options(), cache))
    assert cache.length == 3


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
        ({"top_k": 5}, "top_k would have no effect with temperature 0"),
        ({"top_p": 0.5, "min_p": 0.1}, "top_p, min_p would have no effect"),
        ({"top_n": 5}, "unknown generation option top_n: expected max_new_tokens, temperature"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError) as error:
        Options.of(options)
    assert rule in str(error.value)


def test_same_seed_gives_the_same_text_whatever_the_global_generator_does(scripted: Any) -> None:
    decoder, tokenizer = scripted("hello world", noise=3.0)
    options = Options(max_new_tokens=12, temperature=1.0, seed=7)
    torch.manual_seed(1)
    first = generate(decoder, tokenizer, [1], options).token_ids
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = generate(decoder, tokenizer, [1], options).token_ids
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seeds", [(1, 2), (None, None)])
def test_other_seeds_give_other_tokens(scripted: Any, seeds: tuple[int | None, ...]) -> None:
    decoder, tokenizer = scripted("hello world", noise=3.0)
    first, second = (
        generate(decoder, tokenizer, [1], Options(20, temperature=2.0, seed=seed, ignore_eos=True))
        for seed in seeds
    )
    assert first.token_ids != second.token_ids


def shares(options: GenerationOptions, logits: torch.Tensor, count: int = 4000) -> torch.Tensor:
    choose = Chooser(options)
    drawn = torch.tensor([choose(logits, [0]) for _ in range(count)])
    return torch.bincount(drawn, minlength=len(logits)) / count


LOGITS = torch.tensor([2.0, 1.5, 0.5, 0.0, -1.0, -3.0])


def slow_shares(temperature: float, keep: Callable[[torch.Tensor], list[int]]) -> torch.Tensor:
    """The oracle: probabilities in float64, those not kept struck out, the rest scaled up."""
    weights = torch.tensor([math.exp(value / temperature) for value in LOGITS.tolist()])
    weights /= weights.sum()
    kept = torch.zeros_like(weights)
    kept[keep(weights)] = weights[keep(weights)]
    return kept / kept.sum()


@pytest.mark.parametrize(
    ("options", "keep"),
    [
        ({}, lambda w: list(range(6))),
        ({"top_k": 2}, lambda w: [0, 1]),
        ({"min_p": 0.2}, lambda w: [i for i in range(6) if w[i] >= 0.2 * w.max()]),
        ({"top_p": 0.7}, lambda w: [i for i in range(6) if w[:i].sum() < 0.7]),
    ],
)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_tokens_are_drawn_with_the_probabilities_that_the_options_say(
    options: dict[str, Any],
    keep: Callable[[torch.Tensor], list[int]],
    temperature: float,
) -> None:
    drawn = shares(Options(temperature=temperature, seed=0, **options), LOGITS)
    wanted = slow_shares(temperature, keep)
    assert torch.equal(drawn > 0, wanted > 0.0001)
    assert (drawn - wanted).abs().max() < 0.03  # four standard deviations of 4000 draws


def test_tiny_temperature_is_greedy_and_does_not_overflow() -> None:
    options = Options(temperature=1e-6, seed=0)
    assert shares(options, LOGITS * 1e6, 10).tolist() == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("temperature", [0.0, 1e-5])
def test_repetition_penalty_lowers_what_has_occurred(temperature: float) -> None:
    options = Options(temperature=temperature, repetition_penalty=2.0, seed=0)
    assert Chooser(options)(LOGITS, [0]) == 1  # 2.0 / 2 < 1.5
    assert Chooser(options)(LOGITS, [5]) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(bad: float, temperature: float) -> None:
    logits = LOGITS.clone()
    logits[4] = bad
    with pytest.raises(CheckpointError, match=r"1 of 6 logits .* cache verify"):
        Chooser(Options(temperature=temperature))(logits, [0])


def test_timings_count_our_time_and_not_the_readers(scripted: Any) -> None:
    import time

    pause = patience(0.05)
    decoder, tokenizer = scripted("hello")
    timings: Timings | None = None
    for piece in stream(decoder, tokenizer, [1, 2], Options(max_new_tokens=4)):
        time.sleep(pause)
        timings = piece.timings
    assert timings is not None
    assert (timings.prompt_tokens, timings.cached_tokens, timings.new_tokens) == (2, 0, 4)
    assert timings.time_per_token_s is not None
    assert timings.time_per_token_s < pause
    assert timings.tokens_per_second == pytest.approx(1 / timings.time_per_token_s)
    assert timings.bytes_per_second == pytest.approx(
        timings.bytes_per_token / timings.time_per_token_s
    )
    assert timings.bytes_per_token == decoder.bytes_per_token(4)


def test_a_single_token_has_no_decode_figures(scripted: Any) -> None:
    decoder, tokenizer = scripted("hello")
    timings = generate(decoder, tokenizer, [1], Options(max_new_tokens=1)).timings
    assert timings.time_per_token_s is timings.tokens_per_second is None
    assert timings.time_to_first_token_s > 0


def test_tokens_in_the_cache_are_not_fed_again(scripted: Any) -> None:
    decoder, tokenizer = scripted("hello")
    cache = decoder.new_cache()
    decoder.forward([1, 2, 3], cache)
    reply = generate(decoder, tokenizer, [1, 2, 3, 4], Options(max_new_tokens=2), cache)
    assert cache.tokens[:4] == [1, 2, 3, 4]
    assert reply.timings.cached_tokens == 3
