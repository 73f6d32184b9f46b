"""Environments: what is said of them, and when one is ready. No network."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuralchat_lite.environments.description import packages, size_in_bytes
from neuralchat_lite.environments.environment import (
    Environment,
    engine_environment,
    environments_root,
)

from .conftest import pretend_ready


def test_an_environment_whose_python_is_gone_is_made_again(described: Environment) -> None:
    pretend_ready(described)
    described.python.unlink()
    assert described.state() == "unfinished"


def test_what_a_cpu_lacks_is_named(described: Environment) -> None:
    assert described.obstacles(frozenset(("x1", "x2"))) == []
    (why,) = described.obstacles(frozenset(("x1",)))
    assert why == "needs a CPU with x1, x2; this one lacks x2"


@pytest.mark.parametrize(
    ("variables", "root"),
    [
        ({"NEURALCHAT_LITE_ENVIRONMENTS": "/a", "XDG_DATA_HOME": "/b"}, Path("/a")),
        ({"XDG_DATA_HOME": "/b"}, Path("/b/neuralchat_lite/environments")),
        ({}, Path.home() / ".local/share/neuralchat_lite/environments"),
    ],
)
def test_the_root_follows_the_environment(variables: dict[str, str], root: Path) -> None:
    assert environments_root(variables) == root


@pytest.mark.parametrize("name", ["ipex", "itrex"])
def test_the_engines_environments_pin_what_they_rest_on(name: str) -> None:
    environment = engine_environment(name)
    pinned = [line for file in environment.requirements for line in packages(file)]
    for package in ("torch", "transformers", "tokenizers", "numpy"):
        assert any(line.startswith(f"{package}==") for line in pinned)
    assert set(environment.facts()) >= {"about", "download", "disk", "python", "cpu"}
    for with_cuda in (False, True):
        assert all(size and size_in_bytes(size) for size in environment.sizes(with_cuda))
