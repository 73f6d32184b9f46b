"""Weight types: the codes of each, and the code that the largest weight gets."""

from __future__ import annotations

from dataclasses import dataclass

BITS = {"int4": 4, "int8": 8}  # of a code, by its name in kernels/layout.py


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

    @property
    def bits(self) -> int:
        return BITS[self.stored]

    def limits(self, scheme: str) -> tuple[int, int, int]:
        """The lowest and the highest code, and the steps from 0 to the largest weight ("sym") or of
        the whole range."""
        if scheme == "sym":
            return self.symmetric
        lowest, highest = self.asymmetric
        return lowest, highest, highest - lowest


LEVELS = {
    "int4": Levels("int4", symmetric=(-8, 7, 8), asymmetric=(0, 15)),  # see search.py
    "int4_clip": Levels("int4", symmetric=(-7, 7, 7), asymmetric=(0, 15)),
    "int4_fullrange": Levels("int4", symmetric=(-8, 7, 8), asymmetric=(0, 15)),
    "int8": Levels("int8", symmetric=(-127, 127, 127), asymmetric=(-128, 127)),
}
