"""What is kept of one prompt for the next."""

from __future__ import annotations

from neuralchat_lite.generation.prefix_cache import PrefixCache, common_prefix

from .conftest import Counting


def test_common_prefix_is_as_long_as_both_agree() -> None:
    cases = {((), ()): 0, ((1, 2), (1, 2)): 2, ((1, 2, 3), (1, 2)): 2, ((1, 9), (1, 2, 3)): 1}
    assert {pair: common_prefix(*pair) for pair in cases} == cases


def fed(prefix: PrefixCache, ids: list[int]) -> int:
    """Feed ids; how many of them the cache had kept."""
    cache = prefix.go_back_to(ids)
    kept: int = cache.length
    prefix.decoder.forward(ids[kept:], cache)
    prefix.remember(ids)
    return kept


def test_what_prompts_have_in_common_is_kept_but_for_the_token_that_gives_the_logits(
    decoder: Counting,
) -> None:
    prefix = PrefixCache(decoder)
    prompts = [[1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2], [1, 2], [9]]
    assert [fed(prefix, prompt) for prompt in prompts] == [0, 3, 1, 1, 0]
    assert prefix.ids == [9]


def test_what_was_fed_and_never_said_is_not_reused(decoder: Counting) -> None:
    prefix = PrefixCache(decoder)
    cache = prefix.go_back_to([1, 2, 3])
    decoder.forward([1, 2, 3], cache)  # interrupted before `remember`
    assert prefix.go_back_to([1, 2, 3, 4]).length == 0
