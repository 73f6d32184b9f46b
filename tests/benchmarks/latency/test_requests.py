"""Many requests at once, on an engine without a model and on the library itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.cli.requests import table
from benchmarks.engines.table import ENGINES, Engine, Variant
from benchmarks.latency.requests import Load, Served, serve
from benchmarks.models import shapes
from benchmarks.models.model import Model
from benchmarks.models.random_checkpoint import random_model
from benchmarks.models.shapes import shape
from neuralchat_lite.errors import EngineError

from ...patience import patience

FAKE = Path(__file__).parents[1] / "engines" / "fake_engine.py"
LOAD = Load(requests=6, at_once=2, context=5, new_tokens=3)
FAKES = Variant("fake", "a", {}, "fmt")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    tiny = shape(64, 128, 2, 4, 2) | {"vocab_size": 96}
    monkeypatch.setitem(shapes.SHAPES, "tiny", tiny)
    monkeypatch.setitem(ENGINES, "fake", Engine("fake", str(FAKE), None, {}))
    return Model.at("tiny", random_model("tiny", tmp_path), tmp_path)


def served(model: Model, *variants: Variant, rounds: int = 1) -> list[Served]:
    limit = patience(60)
    return list(serve(model, variants, LOAD, 1, rounds, lambda _: Path(sys.executable), limit))


def test_all_prompts_are_answered_and_what_the_steps_allow_is_said(model: Model) -> None:
    (one,) = served(model, FAKES)
    # Three turns of two sequences: 0.5 s to the first token, 0.125 s for each of two steps.
    assert one.alone == pytest.approx(3 * (0.5 + 2 * 0.125), rel=0.1)
    assert one.share == one.alone / one.seconds


def test_engines_take_turns(model: Model) -> None:
    other = Variant("fake", "b", {}, "fmt")
    assert [one.variant for one in served(model, FAKES, other, rounds=2)] == [FAKES, other] * 2


@pytest.mark.slow
def test_this_library_answers_them(model: Model) -> None:
    ours = Variant(
        "neuralchat_lite", "int4-int8", *ENGINES["neuralchat_lite"].variants["int4-int8"]
    )
    (one,) = served(model, ours)
    assert one.seconds > 0 and one.alone > 0


def test_an_engine_whose_batch_others_cannot_join_says_so(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = FAKE.read_text()
    assert "def answer_all" in text
    single = tmp_path / "single.py"
    single.write_text(text.replace("def answer_all", "def other"))
    monkeypatch.setitem(ENGINES, "fake", Engine("fake", str(single), None, {}))
    with pytest.raises(EngineError, match="one batch after the other"):
        served(model, FAKES)


def test_the_table_compares_within_rounds() -> None:
    other = Variant("fake", "b", {}, "fmt")
    found = [Served(FAKES, 2.0, 1.0), Served(other, 4.0, 1.0)]
    shown = table(LOAD, found)
    cells = [list(column.cells) for column in shown.columns]
    assert cells[0] == ["fake:a", "fake:b"]
    assert cells[2] == ["9", "4"]
    assert cells[4] == ["1.00 (1.00 to 1.00)", "0.50 (0.50 to 0.50)"]
