"""What tests of every package share: the real small models, where they are present."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuralchat_lite.kernels import native

SHARED = Path(__file__).parents[2] / "shared" / "data"
MODELS = ("stories260K", "tinystories-char-0.97m")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the shared models and texts are not beside this checkout")
    return SHARED


@pytest.fixture(scope="session", params=MODELS)
def trained_model(request: pytest.FixtureRequest, shared_data: Path) -> Path:
    """The folder of a small trained model with golden outputs."""
    return shared_data / "models" / request.param


@pytest.fixture(params=native.usable_isas())
def isa(request: pytest.FixtureRequest):
    """Every instruction set that this CPU has, one after the other."""
    before = native.isa().value
    native.use_isa(request.param)
    yield request.param
    native.use_isa(before)
