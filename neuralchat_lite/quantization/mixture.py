"""Which matrices get more bytes: the choice under a budget.

Each matrix has options with a size and a KL divergence, measured with this matrix alone quantized.
Divergences of several matrices are taken to add up, which is an assumption: what a mix really costs
is measured afterwards. A choice under a budget of bytes is then a knapsack, and the greedy rule is
close to the best: all matrices begin with their smallest option, and steps to a larger one are
taken in the order of divergence saved per byte.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.files.progress import size_text
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.quantization.settings import MatrixSettings


@dataclass(frozen=True)
class Option:
    """nbytes: of the matrix, with scales and zeros; kl: mean KL in nats of it alone quantized so"""

    settings: MatrixSettings
    nbytes: int
    kl: float


@dataclass(frozen=True)
class Cost:
    """What one matrix costs. The first of its options is the one that was configured.

    kind: its name within a block, such as "mlp.down_proj"; of the head its own
    """

    module: str
    kind: str
    layer: int | None
    weights: int
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Step:
    """A larger option for one matrix, in place of the one before it."""

    index: int  # of the matrix
    option: Option
    nbytes: int  # more than before
    saved: float  # nats


Mixture = tuple[Option, ...]  # one for each matrix


def configured(costs: Sequence[Cost]) -> Mixture:
    return tuple(cost.options[0] for cost in costs)


def smallest(costs: Sequence[Cost]) -> Mixture:
    return tuple(hull(cost.options)[0] for cost in costs)


def bytes_of(mixture: Mixture) -> int:
    return sum(option.nbytes for option in mixture)


def kl_of(mixture: Mixture) -> float:
    """The sum of what the matrices cost alone."""
    return sum(option.kl for option in mixture)


def hull(options: Sequence[Option]) -> list[Option]:
    """The options worth taking, smallest first: each saves less per byte than the one before."""
    ordered = sorted(options, key=lambda option: (option.nbytes, option.kl))
    kept: list[Option] = []
    for option in ordered:
        if kept and option.kl >= kept[-1].kl:
            continue
        while len(kept) > 1 and slope(kept[-2], option) >= slope(kept[-2], kept[-1]):
            kept.pop()
        kept.append(option)
    return kept


def slope(smaller: Option, larger: Option) -> float:
    """Divergence saved per byte; `larger` has more bytes."""
    return (smaller.kl - larger.kl) / (larger.nbytes - smaller.nbytes)


def steps(costs: Sequence[Cost]) -> list[Step]:
    """All steps of all matrices, in the order in which they are worth taking."""
    found = []
    for index, cost in enumerate(costs):
        kept = hull(cost.options)
        for before, after in itertools.pairwise(kept):
            more = after.nbytes - before.nbytes
            found.append(Step(index, after, more, before.kl - after.kl))
    # The steps of one matrix are in this order already, so sorting never swaps them.
    return sorted(found, key=lambda step: -step.saved / step.nbytes)


def within_bytes(costs: Sequence[Cost], budget: int) -> Mixture:
    """The mixture of at most so many bytes. Raises ConfigError when even the smallest options take
    more.

    A step that does not fit is left out. As that may be a large one of much worth, filling up is
    tried again with each single option given beforehand, and the best of all is taken.
    """
    least = bytes_of(smallest(costs))
    if least > budget:
        weights = sum(cost.weights for cost in costs)
        raise ConfigError(
            f"a budget of {size_text(budget)} ({8 * budget / weights:.3f} bits per weight) is too "
            f"small: the smallest candidates take {size_text(least)} ({8 * least / weights:.3f}); "
            "give a larger budget, or a smaller candidate"
        )
    ordered = steps(costs)
    first = [filled(costs, budget, ordered)]
    forced = (filled(costs, budget, ordered, step) for step in ordered)
    return min([*first, *(found for found in forced if found)], key=kl_of)


def filled(
    costs: Sequence[Cost], budget: int, ordered: Sequence[Step], given: Step | None = None
) -> Mixture:
    """Steps taken in order as long as they fit; empty when the given one does not fit.

    given: a step to take first, whatever comes before it
    """
    mixture = list(smallest(costs))
    over: set[int] = set()
    if given is not None:
        mixture[given.index] = given.option
        over.add(given.index)
    left = budget - bytes_of(tuple(mixture))
    if left < 0:
        return ()
    for step in ordered:
        if step.index in over:
            continue
        if step.nbytes > left:
            over.add(step.index)
            continue
        mixture[step.index] = step.option
        left -= step.nbytes
    return tuple(mixture)


def along(costs: Sequence[Cost]) -> Iterator[Mixture]:
    """The mixtures from the smallest to the most accurate, one step after the other."""
    mixture = list(smallest(costs))
    yield tuple(mixture)
    for step in steps(costs):
        mixture[step.index] = step.option
        yield tuple(mixture)


def overrides_of(
    costs: Sequence[Cost], mixture: Mixture, asked: Mapping[str, Any], prefix: str
) -> dict[str, Any]:
    """`overrides` that give each matrix its option: single layers by name, and a pattern for what
    most layers have.

    asked: the options of the configuration beside them, which may have overrides of its own
    prefix: of the names of blocks, such as "model.layers."
    """
    given = {each.pattern: each.given() for each in WeightOnlyQuantConfig(**asked).overrides}
    single: dict[str, Any] = {}
    common: dict[str, Any] = {}
    for kind in dict.fromkeys(cost.kind for cost in costs):
        of_kind = [
            (cost, option.settings)
            for cost, option in zip(costs, mixture, strict=True)
            if cost.kind == kind
        ]
        usual = Counter(settings for _, settings in of_kind).most_common(1)[0][0]
        cost = of_kind[0][0]
        if cost.options[0].settings != usual:
            name = cost.module if cost.layer is None else f"{prefix}*.{kind}"
            common[name] = options_of(cost.module, usual, asked)
        for cost, settings in of_kind:
            if settings != usual:
                single[cost.module] = options_of(cost.module, settings, asked)
    return {**given, **single, **common}


def options_of(module: str, wanted: MatrixSettings, asked: Mapping[str, Any]) -> Any:
    """The shortest override that gives a module these settings."""
    common = WeightOnlyQuantConfig(**asked)
    short: dict[str, Any] = {"weight_dtype": wanted.weight_dtype}
    for name in ("group_size", "scale_dtype"):
        if getattr(wanted, name) != getattr(common, name):
            short[name] = getattr(wanted, name)
    found = WeightOnlyQuantConfig(**{**asked, "overrides": {module: short}}).settings_of(module)
    if found != wanted:
        short["scheme"] = wanted.scheme
    return wanted.weight_dtype if len(short) == 1 else short
