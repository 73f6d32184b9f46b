"""Values as people give them, in errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from neuralchat_lite.values import SHOWN, plain, shown


class Failing:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\nb", r"'a\nb'"),
        (10**5000, "a value of type int"),
        (Failing(), "a value of type Failing"),
        (np.zeros((2, 2)), "array([[0., 0.], [0., 0.]])"),
    ],
    ids=["newline", "digits", "no repr", "lines"],
)
def test_a_value_is_shown_in_one_line(value: Any, text: str) -> None:
    assert shown(value) == text


def test_a_long_value_is_cut() -> None:
    assert len(shown("x" * 10_000)) == SHOWN + len("...")


def test_a_tensor_without_values_stays_what_it_is() -> None:
    empty = torch.empty((), device="meta")
    assert plain(empty) is empty
    assert plain(torch.tensor(3)) == 3 and type(plain(np.int64(3))) is int
