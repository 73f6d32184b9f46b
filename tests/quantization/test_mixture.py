"""Which matrices get more bytes: the greedy choice, and the overrides that say it."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.quantization.mixture import (
    Cost,
    Option,
    along,
    bytes_of,
    configured,
    hull,
    kl_of,
    overrides_of,
    steps,
    within_bytes,
)
from neuralchat_lite.quantization.settings import MatrixSettings

INT4 = MatrixSettings("int4", 32, "affine8", "fp16")
INT8 = MatrixSettings("int8", 32, "sym", "fp16")
WIDE = MatrixSettings("int4", 128, "affine8", "fp16")
CLIP = MatrixSettings("int4_clip", 64, "sym", "bf16")


def costs_of(matrices: int, seed: int, options: int = 3) -> list[Cost]:
    """Matrices of random sizes and divergences: more bytes mostly cost less."""
    rng = random.Random(seed)
    found = []
    for index in range(matrices):
        weights = rng.choice([256, 512, 1024, 4096])
        scale = 10 ** rng.uniform(-4, -1)
        tried = [
            Option(settings, weights * bits // 8, scale * rng.uniform(0.5, 1) * 4.0 ** (4 - bits))
            for settings, bits in list(zip((INT4, INT8, WIDE), (5, 9, 4), strict=True))[:options]
        ]
        name = f"model.layers.{index}.mlp.down_proj"
        found.append(Cost(name, "mlp.down_proj", index, weights, tuple(tried)))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_the_choice_is_close_to_the_best_of_all_choices(seed: int) -> None:
    costs = costs_of(7, seed)
    every = list(itertools.product(*(cost.options for cost in costs)))
    low, high = min(map(bytes_of, every)), max(map(bytes_of, every))
    for share in (0.1, 0.3, 0.6, 1.0):
        budget = int(low + share * (high - low))
        best = min(kl_of(one) for one in every if bytes_of(one) <= budget)
        found = within_bytes(costs, budget)
        assert bytes_of(found) <= budget
        assert kl_of(found) <= 1.1 * best


def test_steps_of_a_matrix_come_in_their_order_and_each_is_worth_less() -> None:
    costs = costs_of(20, 1)
    worth = [step.saved / step.nbytes for step in steps(costs)]
    assert worth == sorted(worth, reverse=True) and min(worth) > 0
    path = list(along(costs))
    for before, after in itertools.pairwise(path):
        assert bytes_of(after) > bytes_of(before) and kl_of(after) < kl_of(before)


def test_an_option_that_is_larger_and_no_better_is_never_taken() -> None:
    """As int8 is for weights that 4 bits with minima hold exactly."""
    exact, larger = Option(INT4, 100, 0.0), Option(INT8, 200, 1e-6)
    assert hull([exact, larger]) == [exact]
    middle = Option(WIDE, 150, 0.9)  # saves less per byte than the step after it
    assert hull([Option(CLIP, 100, 1.0), middle, larger]) == [Option(CLIP, 100, 1.0), larger]


def test_a_budget_below_the_smallest_options_is_refused() -> None:
    costs = costs_of(3, 0)
    with pytest.raises(ConfigError, match=r"budget of 10 B \(.* bits per weight\) is too small"):
        within_bytes(costs, 10)


CASES: list[tuple[dict[str, Any], tuple[MatrixSettings, ...]]] = [
    ({}, (INT4, INT8, WIDE, CLIP)),
    ({"weight_dtype": "int8"}, (INT8, INT4, CLIP)),
    ({"weight_dtype": "int4_clip", "group_size": 64, "scale_dtype": "bf16"}, (CLIP, INT8, INT4)),
    ({"overrides": {"model.layers.9.*": "int8"}}, (INT4, INT8)),
]


@pytest.mark.parametrize(("asked", "settings"), CASES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_overrides_give_each_matrix_what_was_chosen(
    asked: dict[str, Any], settings: tuple[MatrixSettings, ...], seed: int
) -> None:
    rng = random.Random(seed)
    kinds = ("self_attn.q_proj", "mlp.down_proj")
    places = [(index, kind) for index in range(5) for kind in kinds]
    names = [(f"model.layers.{index}.{kind}", kind, index) for index, kind in places]
    options = tuple(Option(each, 1, 0.0) for each in settings)
    costs = [Cost(name, kind, index, 1, options) for name, kind, index in names]
    head = WeightOnlyQuantConfig(**asked).settings_of("lm_head")
    assert head is not None
    costs.append(Cost("lm_head", "lm_head", None, 1, (Option(head, 1, 0.0), *options)))
    chosen = tuple(rng.choice(cost.options) for cost in costs)
    found = overrides_of(costs, chosen, asked, "model.layers.")
    config = WeightOnlyQuantConfig(**{**asked, "overrides": found})
    for cost, option in zip(costs, chosen, strict=True):
        assert config.settings_of(cost.module) == option.settings
    assert list(found)[: len(asked.get("overrides", {}))] == list(asked.get("overrides", {}))
    nothing = overrides_of(costs, configured(costs), asked, "model.layers.")
    assert len(nothing) == len(asked.get("overrides", {}))


def test_what_most_layers_have_is_one_pattern() -> None:
    options = (Option(INT4, 1, 0.0), Option(INT8, 2, 0.0))
    costs = [Cost(f"model.layers.{i}.mlp.up", "mlp.up", i, 1, options) for i in range(4)]
    chosen = tuple(cost.options[cost.layer != 2] for cost in costs)
    assert overrides_of(costs, chosen, {}, "model.layers.") == {
        "model.layers.2.mlp.up": "int4",
        "model.layers.*.mlp.up": "int8",
    }
