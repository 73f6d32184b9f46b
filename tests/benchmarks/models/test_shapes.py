"""Shapes have the sizes of their names, and names that are known."""

from __future__ import annotations

import math

import pytest

from benchmarks.models import shapes
from neuralchat_lite.checkpoints.random_weights import RandomCheckpoint
from neuralchat_lite.errors import ConfigError


def test_an_unknown_shape_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'13b'.*7b, 1b, 135m, 100m.*mistral-7b"):
        shapes.shape_name("13b")
    assert shapes.shape_name("mistral-7b") == "7b"


@pytest.mark.parametrize(("name", "count"), [("7b", 7.24e9), ("1b", 1.10e9)])
def test_a_shape_has_the_parameters_of_its_name(name: str, count: float) -> None:
    tensors = RandomCheckpoint(shapes.SHAPES[name]).architecture.tensors()
    assert sum(math.prod(spec.shape) for spec in tensors) == pytest.approx(count, rel=0.01)
