"""Values as people give them: what they are, and how an error shows them."""

from __future__ import annotations

import contextlib
import difflib
from typing import Any

SHOWN = 100  # characters


def plain(value: Any) -> Any:
    """The Python value of a numpy scalar or of a tensor or array without dimensions (`np.int64(3)`,
    `torch.tensor(0.5)`); everything else as it is."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        with contextlib.suppress(Exception):  # a tensor without values, such as on "meta"
            return value.item()
    return value


def shown(value: Any) -> str:
    """A value for an error: as Python writes it, in one line and short."""
    try:
        text = " ".join(repr(value).split())
    # An integer of 5,000 digits has no repr, and a class of the user's may raise anything.
    except Exception:
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def suggestion(name: str, valid: list[str]) -> str:
    """ " (did you mean ...?)" for a name that is close to a valid one, else nothing."""
    close = difflib.get_close_matches(name, valid, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
