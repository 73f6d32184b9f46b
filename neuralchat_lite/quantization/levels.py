"""Weight types: the codes of each, and the code that the largest weight gets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Levels:
    """The codes of a weight type.

    stored: its name in kernels/layout.py
    symmetric: (lowest level, highest level, divisor of the absolute maximum)
    asymmetric: (lowest code, highest code)
    """

    stored: str
    symmetric: tuple[int, int, int]
    asymmetric: tuple[int, int]


LEVELS = {
    "int4": Levels("int4", symmetric=(-8, 7, 8), asymmetric=(0, 15)),  # see search.py
    "int4_clip": Levels("int4", symmetric=(-7, 7, 7), asymmetric=(0, 15)),
    "int4_fullrange": Levels("int4", symmetric=(-8, 7, 8), asymmetric=(0, 15)),
    "int8": Levels("int8", symmetric=(-127, 127, 127), asymmetric=(-128, 127)),
}
