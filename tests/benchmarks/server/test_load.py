"""The load of many clients, in small: the nano model and a dozen requests."""

from __future__ import annotations

import random
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import neuralchat_lite as ncl
from benchmarks.cli.server import table
from benchmarks.server.load import SERVED, Load, Ran, by_clients, by_threads, serving
from neuralchat_lite.errors import EngineError

if find_spec("locust") is None:  # importing it would change sockets and locks of this process
    pytest.skip("the load needs the extra `load`", allow_module_level=True)
pytest.importorskip("fastapi", reason="the server needs the extra `serve`")

NANO = Path(__file__).parents[3] / "examples/nano/model"
LOAD = Load(requests=12, words=10, new_tokens=5)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(str(NANO), ("--dtype", "fp32")) as address:
        yield address


@pytest.mark.parametrize("stream", [False, True])
def test_all_requests_are_answered_and_counted(address: str, stream: bool) -> None:
    prompts = LOAD.prompts(random.Random(1))
    ran = by_clients(address, SERVED, prompts, LOAD, at_once=3, stream=stream)
    assert ran.statuses == {200: 12} and ran.tokens == 12 * 5
    assert 0 < ran.seconds < 600
    assert len(ran.first_s) == (12 if stream else 0)
    assert all(0 < seconds <= ran.seconds for seconds in ran.first_s)


def test_what_is_refused_is_counted_as_that(address: str) -> None:
    ran = by_clients(address, "another", LOAD.prompts(random.Random(2)), LOAD, 3, stream=False)
    assert ran.statuses == {404: 12} and ran.tokens == 0


def test_threads_have_the_same_load() -> None:
    model = ncl.load(NANO, dtype="fp32")
    ran = by_threads(model, LOAD.prompts(random.Random(3)), LOAD, at_once=3)
    assert ran.tokens == 12 * 5 and ran.statuses == {200: 12}


def test_a_server_that_does_not_start_is_told_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="did not start"), serving(str(tmp_path / "none"), ()):
        pass


def test_ratios_are_those_of_one_round() -> None:
    def ran(how: str, seconds: float) -> Ran:
        return Ran(how, 8, seconds, 100, {200: 12}, [0.1, 0.3] if how == "streamed" else ())

    runs = [ran("threads", 1), ran("streamed", 2), ran("threads", 4), ran("streamed", 4)]
    shown = table(LOAD, runs)
    cells = [list(column.cells) for column in shown.columns]
    assert cells[1] == ["threads", "streamed"]
    assert cells[3][1] == "0.75 (0.50 to 1.00)" and cells[4] == ["", "0.20 s, 0.30 s"]
    assert cells[5][1] == "24 x 200"
