"""Drafts: guesses at the next tokens, and which of them the model would have chosen itself.

A step over several tokens costs hardly more than over one. So tokens that are cheaply guessed are
fed together, and of each the model chooses the next one as it would have done anyway, by the same
random numbers. A guess stands where it is what the model chose. So the answer is the same as
without, token for token, also where it is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from neuralchat_lite.engines.engine import Decoder
from neuralchat_lite.generation.prefix_cache import common_prefix

SHORTEST, LONGEST = 2, 4  # tokens in a row by which an earlier place is found
ID_BITS = 32
FIRST_LENGTH = 4  # tokens of the first draft
LONGEST_REST = 63  # tokens without drafts


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


class ModelDrafts:
    """Guesses of another model, a smaller one with the same vocabulary: its likeliest tokens."""

    def __init__(self, decoder: Decoder, ids: Iterable[int] = ()) -> None:
        self.decoder = decoder
        self.ids = list(ids)
        self.fed: list[int] = []  # what its cache holds
        self.cache: Any = None

    def extend(self, ids: Iterable[int]) -> None:
        self.ids.extend(ids)

    def draft(self, count: int) -> list[int]:
        """The next `count` tokens; fewer where its context ends."""
        count = min(count, self.decoder.context_length - len(self.ids) + 1)
        if count < 1:
            return []
        known = common_prefix(self.fed, self.ids[:-1])
        if self.cache is None or not self.cache.can_truncate(known):
            self.cache, known = self.decoder.new_cache(), 0
        self.cache.truncate(known)
        found: list[int] = []
        ids = self.ids[known:]
        while True:
            logits = self.decoder.forward(ids, self.cache)
            found.append(int(logits.numpy().argmax()))
            if len(found) == count:
                break
            ids = found[-1:]
        self.fed = [*self.ids, *found[:-1]]
        return found


class DraftLength:
    """How many tokens to guess at: more while all stand, fewer when they fall, and none for a while
    when guesses have failed in vain."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.length = min(FIRST_LENGTH, longest)
        self.failures = 0  # in a row
        self.resting = 0  # tokens to come without drafts

    def next(self) -> int:
        if self.resting:
            self.resting -= 1
            return 0
        return self.length

    def tell(self, drafted: int, accepted: int) -> None:
        """What came of the last drafts."""
        if accepted:
            self.failures = 0
            full = accepted == drafted
            self.length = min(self.longest, 2 * self.length if full else accepted + 1)
        else:
            self.failures += 1
            self.length = 1
            self.resting = min(LONGEST_REST, 2**self.failures - 1)


DRAFTS = {"ngram": NgramDrafts}  # by the name of an option


def drafts_of(draft: Any, ids: Iterable[int]) -> NgramDrafts | ModelDrafts:
    """Guesses as the option `draft` asks for them: a name, or a loaded model."""
    if isinstance(draft, str):
        return DRAFTS[draft](ids)
    return ModelDrafts(draft.decoder, ids)
