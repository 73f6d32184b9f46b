"""Turns, rows and failures, seen with an engine that has no model and a clock of its own."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.engines.table import ENGINES, Engine, Variant
from benchmarks.latency import bench as bench_module
from benchmarks.latency.bench import Bench, turns
from benchmarks.latency.cases import Case, prompts_for
from benchmarks.models import shapes
from benchmarks.models.model import Model
from benchmarks.models.random_checkpoint import random_model
from benchmarks.models.shapes import shape
from benchmarks.rows import kinds, results

from ...patience import patience

FAKE = Path(__file__).parents[1] / "engines" / "fake_engine.py"
CASE = Case(batch=1, context=8, new_tokens=5, rounds=2)
LATENCY = ("metric", "batch", "context", "round")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    tiny = shape(64, 128, 2, 4, 2) | {"vocab_size": 96}
    monkeypatch.setitem(shapes.SHAPES, "tiny", tiny)
    monkeypatch.setitem(ENGINES, "fake", Engine("fake", str(FAKE), None, {}))
    return Model.at("tiny", random_model("tiny", tmp_path), tmp_path)


def variant(name: str = "a", stored: str | None = "fmt", **options: Any) -> Variant:
    return Variant("fake", name, options, stored)


def bench(
    model: Model, *variants: Variant, cases: tuple[Case, ...] = (CASE,), **more: Any
) -> Bench:
    return Bench(
        model.formats.with_suffix(".jsonl"),
        model,
        variants or (variant(),),
        cases,
        threads=2,
        python_of=lambda engine: Path(sys.executable),
        probe=lambda: 1e9,
        **more,
    )


def rows_of(measured: Bench, kind: str = "latency", **wanted: Any) -> list[dict[str, Any]]:
    rows = [dict(row) for row in results.read(measured.results) if row["kind"] == kind]
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def test_engines_take_turns() -> None:
    a, b = variant("a"), variant("b")
    assert list(turns([a, b], 2)) == [(0, a), (0, b), (1, a), (1, b)]


def test_a_probe_of_the_bandwidth_lies_before_and_behind_every_turn(model: Model) -> None:
    measured = bench(model, variant("a"), variant("b"))
    measured.run({})
    kinds = []
    for row in results.read(measured.results):
        step = row["variant"] if row["kind"] == "latency" else row["kind"]
        if not kinds or kinds[-1] != step:
            kinds.append(step)
    assert kinds == ["run", *["probe", "a", "probe", "b"] * 2, "probe"]


def test_a_turn_gives_every_metric_with_the_times_of_the_clock(model: Model) -> None:
    measured = bench(model)
    measured.run({})
    [first] = rows_of(measured, metric="first_token_s", round=0)
    assert first["samples"] == [pytest.approx(0.5, abs=0.05)]
    [steps] = rows_of(measured, metric="time_per_token_s", round=1)
    assert steps["samples"] == pytest.approx([0.125] * 4)
    [prefill] = rows_of(measured, metric="prefill_tokens_per_s", round=0)
    assert prefill["samples"] == [pytest.approx(8 / first["samples"][0])]
    [disk] = rows_of(measured, metric="disk_bytes")
    assert disk["samples"] == [1000 + (model.stored(variant()) / "complete.json").stat().st_size]
    # 2 layers x keys and values x 2 heads of 16 x 2 bytes, at the middle of the decoded tokens
    [size] = rows_of(measured, metric="bytes_per_token")
    assert size["samples"] == [1000 + (8 + 2) * 2 * 2 * 32 * 2]
    peak, private = (
        rows_of(measured, metric=name, round=0)[0]["samples"][0]
        for name in ("peak_rss_bytes", "private_bytes")
    )
    assert peak > private > 1e6
    loads = [row["metric"] for row in rows_of(measured) if row["metric"].startswith("load")]
    assert len(loads) == 2 and loads[1] == "load_warm_s"


def test_each_sequence_of_a_batch_has_keys_of_its_own_and_shares_the_weights(model: Model) -> None:
    measured = bench(model, cases=(Case(3, 8, 5, 1),))
    measured.run({})
    [size] = rows_of(measured, metric="bytes_per_token")
    assert size["samples"] == [1000 + 3 * (8 + 2) * 2 * 2 * 32 * 2]
    [first] = rows_of(measured, metric="first_token_s")
    [prefill] = rows_of(measured, metric="prefill_tokens_per_s")
    assert prefill["samples"] == [pytest.approx(24 / first["samples"][0])]


def test_rows_say_under_which_conditions_they_were_measured(model: Model) -> None:
    measured = bench(model, variant(colour="blue"))
    measured.run({"quick": True})
    [steps] = rows_of(measured, metric="time_per_token_s", round=0)
    assert steps["conditions"] == {
        "colour": "blue",
        "threads_seen": 2,
        "versions": {"fake": "1.0"},
        "environment": "the harness' own",
        "new_tokens": 5,
        "own": {"clock": "the fake's", "time_per_token_s": 0.125},
    }
    prompt = json.dumps(prompts_for(CASE, 96)).encode()
    assert steps["prompt_sha256"] == hashlib.sha256(prompt).hexdigest()
    [run] = rows_of(measured, "run")
    assert run["arguments"] == {"quick": True} and run["machine"]["threads"] == 2


def test_prompts_are_the_same_for_everyone_and_hold_no_special_tokens() -> None:
    case = Case(2, 512, 4, 1)
    prompts = prompts_for(case, 96)
    assert prompts == prompts_for(case, 96)
    assert [len(ids) for ids in prompts] == [512, 512] and prompts[0] != prompts[1]
    assert {min(map(min, prompts)), max(map(max, prompts))} == {3, 95}


@pytest.mark.parametrize(
    ("context", "reason"),
    [(13, "killed by SIGKILL"), (14, "within {limit} s"), (15, "no such context")],
)
def test_a_case_that_goes_wrong_becomes_a_row_and_the_rest_goes_on(
    model: Model, context: int, reason: str
) -> None:
    bad, limit = Case(1, context, 5, 2), math.ceil(patience(2))
    reason = reason.format(limit=limit)
    measured = bench(model, variant("a"), variant("b"), cases=(bad, CASE), limit=limit)
    measured.run({})
    failures = rows_of(measured, "failure")
    assert [row["variant"] for row in failures] == ["a", "b"]
    assert all(row["stage"] == bad.name and reason in row["reason"] for row in failures)
    if context == 13:
        assert failures[0]["last_lines"][-1] == "about to die"
    good = rows_of(measured, metric="time_per_token_s", context=8)
    assert {(row["variant"], row["round"]) for row in good} >= {("a", 1), ("b", 1)}


@pytest.mark.parametrize("stage", ["prepare", "load"])
def test_a_variant_that_cannot_be_prepared_or_loaded_is_tried_once(
    model: Model, stage: str
) -> None:
    broken = variant("broken", stored="other", **{stage: "fail"})
    measured = bench(model, broken, variant("a"))
    measured.run({})
    [failure] = rows_of(measured, "failure")
    assert (failure["variant"], failure["stage"]) == ("broken", stage)
    assert len(rows_of(measured, metric="time_per_token_s", variant="a")) == CASE.rounds
    assert not list(model.formats.glob(".tmp-*"))


def test_variants_of_one_format_are_converted_once(model: Model) -> None:
    bench(model, variant("a"), variant("b"), variant("c", stored="other")).run({})
    assert len((model.formats / "prepared").read_text().splitlines()) == 2


def test_a_checkpoint_from_elsewhere_is_loaded_where_it_lies(model: Model, tmp_path: Path) -> None:
    elsewhere = Model.at("mine/real", model.folder, tmp_path / "formats")
    measured = bench(elsewhere, variant(stored=None))
    measured.run({})
    [disk] = rows_of(measured, metric="disk_bytes")
    files = sum(path.stat().st_size for path in model.folder.iterdir())
    assert disk["samples"] == [files] and disk["model"] == "mine/real"


def test_an_interrupted_run_keeps_its_rows_and_resuming_measures_the_rest_alone(
    model: Model,
) -> None:
    a, b = variant("a"), variant("b")
    probes = iter([1e9, 1e9])

    def probe() -> float:
        for value in probes:
            return value
        raise KeyboardInterrupt

    measured = bench(model, a, b)
    measured.probe = probe
    with pytest.raises(KeyboardInterrupt):
        measured.run({})
    kept = rows_of(measured)
    assert {(row["variant"], row["round"]) for row in kept} == {("a", 0), ("b", 0)}
    bench(model, a, b).run({})
    whole = rows_of(measured)
    assert whole[: len(kept)] == kept
    again = [tuple(row[name] for name in ("variant", *LATENCY)) for row in whole]
    assert len(set(again)) == len(again)
    assert {(row["variant"], row["round"]) for row in whole[len(kept) :]} == {("a", 1), ("b", 1)}


def test_no_turn_begins_when_time_is_up_and_what_is_left_is_said(model: Model) -> None:
    said: list[str] = []
    measured = bench(model, seconds=0, say=said.append)
    measured.run({})
    assert rows_of(measured) == []
    assert said[-1] == "time is up in round 1 of 2: --resume goes on"


@pytest.mark.parametrize("kept", [3, 6, 7, 8, 10])
def test_a_turn_that_was_interrupted_in_the_middle_is_completed_without_repeating(
    model: Model, kept: int
) -> None:
    cases = (CASE, Case(2, 8, 5, 2))
    measured = bench(model, cases=cases)
    measured.run({})
    lines = measured.results.read_text().splitlines(keepends=True)
    keys = {kinds.key(row) for row in rows_of(measured)}
    measured.results.write_text("".join(lines[:kept]))
    bench(model, cases=cases).run({})
    found = [kinds.key(row) for row in rows_of(measured)]
    assert len(set(found)) == len(found)
    assert set(found) == keys


def test_resuming_what_is_complete_starts_no_worker(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench(model).run({})
    monkeypatch.setattr(bench_module, "start_worker", None)
    bench(model).run({})


def test_another_prompt_or_thread_count_is_not_taken_for_measured(model: Model) -> None:
    bench(model).run({})
    other = bench(model, cases=(Case(1, 9, 5, 2),))
    assert other.pending(0, variant())
    more_threads = bench(model)
    more_threads.threads = 1
    assert more_threads.pending(0, variant())
    assert not bench(model).pending(0, variant())
