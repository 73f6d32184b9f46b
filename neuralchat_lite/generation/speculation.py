"""Drafts: guesses at the next tokens, and which of them the model would have chosen itself.

A step over several tokens costs hardly more than over one. So tokens that are cheaply guessed are
fed together, and what the model thinks of each is compared with the guess. The answer is the same
as without: token for token, or for a draft that is itself drawn, with the same probabilities.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from neuralchat_lite.generation.sampling import Chooser, check_finite

SHORTEST, LONGEST = 2, 4  # tokens in a row by which an earlier place is found
ID_BITS = 32


class NgramDrafts:
    """Guesses that a text goes on as it did after the same last tokens before.

    For each run of 2, 3 and 4 tokens it keeps where the newest one ended. So a token costs three
    entries of dictionaries, however long the text is.
    """

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self.ids: list[int] = []
        self.ends: dict[int, dict[int, int]] = {
            count: {} for count in range(LONGEST, SHORTEST - 1, -1)
        }
        self.earlier: int | None = None  # where the last tokens have ended before
        self.extend(ids)

    def extend(self, ids: Iterable[int]) -> None:
        """More of the text: first its prompt, then each token that was chosen."""
        for token in ids:
            self.ids.append(token)
            self.earlier = None
            end = len(self.ids)
            for count, ends in self.ends.items():
                if end < count:
                    continue
                run = 0
                for each in self.ids[-count:]:
                    run = run << ID_BITS | each
                if self.earlier is None:  # longer runs come first
                    self.earlier = ends.get(run)
                ends[run] = end

    def draft(self, count: int) -> list[int]:
        """The next `count` tokens; none where the last two have not occurred before."""
        if self.earlier is None:
            return []
        # Where they run into the end they go on with themselves, as a text that repeats does.
        found: list[int] = []
        for place in range(self.earlier, self.earlier + count):
            beyond = place - len(self.ids)
            found.append(self.ids[place] if beyond < 0 else found[beyond])
        return found


def accept_drafts(
    logits: Tensor,
    drafted: Sequence[int],
    chooser: Chooser,
    ids: Sequence[int],
    drawn_from: Tensor | None = None,
) -> list[int]:
    """The next tokens: of `drafted` those that stand, then one more of the model's own.

    logits: [len(drafted) + 1, vocab] fp32: of the last token of `ids`, and of each drafted one
    ids: all tokens before
    drawn_from: [len(drafted), vocab], the probabilities of which each token was drafted, for a
        temperature above 0; None for tokens that were found or were the likeliest

    Without `drawn_from` each token is the one that `chooser` takes from its logits, by the same
    random numbers as without drafts: it stands while that is the drafted one, which has the
    probability that the model gives it. This is rejection sampling for a draft that is certain.

    With it, a token x stands with the probability min(1, p(x) / q(x)), and in place of the first
    that does not, one is drawn of max(0, p - q), scaled to sum to 1: then all have the
    probabilities p. Source: Leviathan et al. 2023, https://arxiv.org/abs/2211.17192

    Raises what the chooser raises.
    """
    assert len(logits) == len(drafted) + 1
    if drawn_from is not None and not chooser.greedy:
        return accept_drawn(logits, drafted, chooser, ids, drawn_from)
    found: list[int] = []
    for row, draft in zip(logits, [*drafted, None], strict=True):
        found.append(chooser(row, [*ids, *found]))
        if found[-1] != draft:
            break
    return found


def accept_drawn(
    logits: Tensor, drafted: Sequence[int], chooser: Chooser, ids: Sequence[int], drawn_from: Tensor
) -> list[int]:
    found: list[int] = []
    for row, draft, q in zip(logits, drafted, drawn_from, strict=False):  # there is one row more
        p = probabilities(row, chooser, [*ids, *found])
        # u < p / q as u * q < p: q may be 0 where it was rounded.
        if float(torch.rand((), generator=chooser.generator)) * float(q[draft]) < float(p[draft]):
            found.append(draft)
            continue
        rest = (p - q).clamp_(min=0)
        # Equal but for rounding: nothing is left, and p is as good.
        return [*found, chooser.draw(rest if float(rest.sum()) > 0 else p)]
    return [*found, chooser.draw(probabilities(logits[-1], chooser, [*ids, *found]))]


def probabilities(row: Tensor, chooser: Chooser, ids: Sequence[int]) -> Tensor:
    check_finite(row, len(ids), chooser.when_not_finite)
    return chooser.probabilities(row, ids)
