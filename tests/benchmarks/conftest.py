"""The benchmarks are a package of the repository, not of the installed library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ..conftest import SHARED
from .made_sets import write_sets

ROOT = Path(__file__).parents[2]
NANO = ROOT / "examples" / "nano" / "model"


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """Little models are slower with several threads, and much slower beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def nano() -> Path:
    """The folder of the little trained model of the repository."""
    return NANO


@pytest.fixture(scope="session")
def made_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of evaluation sets that the tests make."""
    folder = tmp_path_factory.mktemp("sets")
    write_sets(folder)
    return folder


@pytest.fixture(scope="session")
def evaluation_sets(made_sets: Path) -> Path:
    """A folder of evaluation sets: the published ones where they are present, or those made."""
    published = SHARED / "evals"
    return published if published.is_dir() else made_sets


@pytest.fixture
def accuracy_row() -> Callable[..., dict[str, Any]]:
    """A row of scores with some fields changed."""

    def row(items: list[float] | None = None, **changed: Any) -> dict[str, Any]:
        items = [1, 0, 1, 1] if items is None else items
        return {
            "kind": "accuracy",
            "engine": "neuralchat_lite",
            "variant": "int4-bf16",
            "model": "tiny",
            "model_sha256": "m",
            "task": "gsm8k",
            "metric": "acc",
            "value": sum(items) / len(items),
            "stderr": 0.1,
            "count": len(items),
            "items": items,
            "data_sha256": "d",
            "shots": 5,
            "limit": None,
            "conditions": {},
        } | changed

    return row


@pytest.fixture
def latency_row() -> Callable[..., dict[str, Any]]:
    def row(samples: list[float], metric: str = "time_per_token_s", **changed: Any):
        return {
            "kind": "latency",
            "engine": "neuralchat_lite",
            "variant": "int4-bf16",
            "model": "1b",
            "shape_sha256": "s",
            "prompt_sha256": "p",
            "threads": 2,
            "metric": metric,
            "batch": 1,
            "context": 32,
            "unit": "s",
            "samples": samples,
            "round": 0,
            "conditions": {},
        } | changed

    return row
