"""Values as people have them: a number from numpy or torch is the number."""

from __future__ import annotations

from typing import Any


def plain(value: Any) -> Any:
    """The Python value of a numpy scalar or of a tensor or array without dimensions (`np.int64(3)`,
    `torch.tensor(0.5)`); everything else as it is."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    return value
