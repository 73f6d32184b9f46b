"""What two lists of token ids have in common."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = enumerate(zip(left, right))  # noqa: B905 - the shorter one ends the prefix
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
