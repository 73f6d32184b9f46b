"""A model maps files, so it is not sent to other processes; the error says what is."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import neuralchat_lite as ncl

NANO = Path(__file__).parents[1] / "examples/nano/model"


@pytest.mark.parametrize("copied", [pickle.dumps, copy.deepcopy])
def test_a_model_that_is_pickled_or_copied_names_the_remedy(
    copied: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEURALCHAT_LITE_CACHE", str(tmp_path))
    model = ncl.load(NANO, dtype="fp32")
    with pytest.raises(ncl.ConfigError, match=r"pass its folder .*call load\(folder\)"):
        copied(model)
    assert copy.copy(model) == model
