"""Candidates of assisted generation and prompt lookup, cut to what fits into the context.

transformers feeds all candidates and one token before it looks at the length of the text, since its
own models compute beyond their context.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from neuralchat_lite.errors import PromptError

Candidates = tuple[Tensor, Tensor | None]  # ids [1, text + new], and logits of the new [1, new, v]


def fitting(get_candidates: Callable[..., Candidates], longest: int) -> Callable[..., Candidates]:
    """`get_candidates` of a candidate generator, for a text of at most `longest` tokens.

    The model itself gives one token after the candidates. An assistant whose own context is full
    has no candidates.
    """

    def cut(input_ids: Tensor, *args: Any, **kwargs: Any) -> Candidates:
        length = input_ids.shape[1]
        room = longest - length - 1
        if room <= 0:
            return input_ids, None
        try:
            ids, logits = get_candidates(input_ids, *args, **kwargs)
        except PromptError:
            return input_ids, None
        return ids[:, : length + room], None if logits is None else logits[:, :room]

    return cut
