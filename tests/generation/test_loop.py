"""The decode loop, on a decoder whose logits are written down."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from neuralchat_lite.errors import PromptError
from neuralchat_lite.generation import loop
from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.generation.prompt import Prompt
from neuralchat_lite.generation.sequence import Piece, Reply, Sequence, Timings

from ..patience import patience

Options = GenerationOptions


def stream(
    decoder: Any, tokenizer: Any, ids: list[int], options: Options, cache: Any = None
) -> Iterator[Piece]:
    return loop.stream(Sequence(decoder, tokenizer, Prompt(tuple(ids)), options, cache))


def generate(*arguments: Any) -> Reply:
    return loop.fold(stream(*arguments))


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
