"""Work on a stack of its own."""

from __future__ import annotations

import threading

import pytest

from neuralchat_lite.generation.deep_stack import with_stack


def test_what_the_work_gives_or_raises_comes_back() -> None:
    usual = threading.stack_size()
    assert with_stack((16 << 20) + 5, lambda: 7) == 7
    with pytest.raises(KeyError, match="lost"):
        with_stack(1 << 20, lambda: {}["lost"])
    assert threading.stack_size() == usual
