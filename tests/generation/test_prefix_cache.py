"""What is kept of one prompt for the next."""

from __future__ import annotations

from neuralchat_lite.generation.prefix_cache import common_prefix


def test_common_prefix_is_as_long_as_both_agree() -> None:
    cases = {((), ()): 0, ((1, 2), (1, 2)): 2, ((1, 2, 3), (1, 2)): 2, ((1, 9), (1, 2, 3)): 1}
    assert {pair: common_prefix(*pair) for pair in cases} == cases
