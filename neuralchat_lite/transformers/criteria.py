"""Stopping criteria of transformers during a prompt, which transformers asks after tokens only.

A criterion may look at the ids, or at something else: a flag that another thread sets, a clock.
While a prompt is fed the ids do not change. So one that was false before and becomes true means
that something else has changed, and the generation ends. One that is true from the start is asked
after the first token, as in transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy
from typing import Any

import torch
from torch import Tensor

from neuralchat_lite.kernels.interruption import Check


class PromptCriteria:
    """criteria: what the caller of `generate` gave; ids: the prompt, [batch, columns]"""

    def __init__(self, criteria: Iterable[Callable[..., Any]], ids: Tensor) -> None:
        self.criteria = list(criteria)
        self.ids = ids

    def check(self) -> Check:
        """Whether a criterion is true that is false now."""
        waiting = [each for each in self.criteria if not self.holds(each)]
        return lambda: any(self.holds(each) for each in waiting)

    def holds(self, criterion: Callable[..., Any]) -> bool:
        """Whether it ends all rows. A copy is asked: some count how often they are called."""
        try:
            return bool(torch.as_tensor(copy(criterion)(self.ids, None)).all())
        except Exception:  # it needs the scores of a token, and is asked when there are some
            return False
