"""`ipex.optimize` for models of the drop-in face: it checks, and says what has no effect."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import neuralchat_lite.ipex as ipex
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.transformers.auto import AutoModelForCausalLM

NANO = Path(__file__).parents[1] / "examples/nano/model"


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.bfloat16)


@pytest.mark.parametrize("optimize", [ipex.optimize, ipex.llm.optimize])
def test_the_model_comes_back_as_it_is(model: Any, optimize: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert optimize(model.eval(), dtype=torch.bfloat16) is model
        assert optimize(model) is model


def test_switches_of_the_card_are_named_in_one_warning(model: Any) -> None:
    with pytest.warns(UserWarning, match="no effect") as caught:
        ipex.optimize(
            model.eval(), dtype=torch.bfloat16, inplace=True, level="O1", auto_kernel_selection=True
        )
    assert [str(w.message) for w in caught] == [
        "these arguments have no effect here: auto_kernel_selection, inplace, level"
    ]


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"dtype": torch.float32}, "computes in torch.bfloat16, not in torch.float32: load it"),
        ({"optimizer": object()}, "optimizer is for training"),
        ({"quantization_config": object()}, "give a WeightOnlyQuantConfig to"),
        ({"in_place": True}, r"did you mean 'inplace'\?"),
        ({"model": torch.nn.Linear(2, 2)}, "given a torch.nn.modules.linear.Linear: load"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_would_not_be_true_is_refused(
    model: Any, arguments: dict[str, Any], rule: str
) -> None:
    with pytest.raises(ConfigError, match=rule):
        ipex.optimize(**{"model": model, **arguments})
