"""Candidates of assisted generation and prompt lookup, cut to what fits into context and cache.

transformers feeds all candidates and one token before it looks at the length of the text, since its
own models compute beyond their context. Then it goes back to the last candidate that was right,
which a sliding window allows for one block of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from neuralchat_lite.errors import PromptError

Candidates = tuple[Tensor, Tensor | None]  # ids [1, text + new], and logits of the new [1, new, v]


def fitting(
    get_candidates: Callable[..., Candidates], longest: int, most: int
) -> Callable[..., Candidates]:
    """`get_candidates` of a candidate generator, for a text of at most `longest` tokens and at most
    `most` candidates at once.

    The model itself gives one token after the candidates. An assistant whose own context is full
    has no candidates.
    """

    def cut(input_ids: Tensor, *args: Any, **kwargs: Any) -> Candidates:
        length = input_ids.shape[1]
        room = min(longest - length - 1, most)
        if room <= 0:
            return input_ids, None
        try:
            ids, logits = get_candidates(input_ids, *args, **kwargs)
        except PromptError:
            return input_ids, None
        return ids[:, : length + room], None if logits is None else logits[:, :room]

    return cut
