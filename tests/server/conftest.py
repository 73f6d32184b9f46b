"""What the tests of the server share: the nano model behind an application, and clients of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import neuralchat_lite as ncl

from .calls import Client

PACKAGES = ("fastapi", "uvicorn", "openai", "prometheus_client")

NANO = Path(__file__).parents[2] / "examples/nano/model"


@pytest.fixture(autouse=True, scope="session")
def packages() -> None:
    for package in PACKAGES:
        pytest.importorskip(package, reason="the server needs the extra `serve`")


@pytest.fixture(scope="session")
def nano() -> Iterator[ncl.Model]:
    """Unquantized, so that nothing is written."""
    model = ncl.load(NANO, dtype="fp32")
    yield model
    model.close()


@pytest.fixture
def client_of(nano: ncl.Model) -> Callable[..., Client]:
    """client_of(**settings) -> a client of an application with the nano model, as "nano\""""

    from neuralchat_lite.server.app import create_app
    from neuralchat_lite.server.settings import Settings

    def make(**settings: Any) -> Client:
        return Client(create_app({"nano": nano}, Settings(**settings)))

    return make


@pytest.fixture
def client(client_of: Callable[..., Client]) -> Client:
    return client_of()
