"""A shape so small that a model of it is written in no time."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.models import shapes

TINY = shapes.shape(64, 128, 2, 4, 2) | {"vocab_size": 96}


@pytest.fixture(autouse=True)
def tiny_shape(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    return TINY
