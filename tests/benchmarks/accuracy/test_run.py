"""The accuracy command: rows for what was measured, rows for what failed, nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install '.[bench]'")

import typer

from benchmarks.accuracy import measures
from benchmarks.accuracy import run as run_module
from benchmarks.accuracy.opening import chosen
from benchmarks.cli import accuracy
from benchmarks.engines.table import scored_variants
from benchmarks.rows import results
from neuralchat_lite.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_torch_thread")
ALL_OF = "neuralchat_lite:fp32,neuralchat_lite:int4-bf16,transformers:fp32"


@pytest.fixture
def run(tmp_path, nano, monkeypatch):
    """run(*arguments) -> (exit code, rows of the file)"""
    monkeypatch.setenv("NEURALCHAT_LITE_CACHE", str(tmp_path / "cache"))
    app = typer.Typer()
    app.command()(accuracy.accuracy_command)
    out = tmp_path / "run.jsonl"

    def call(*arguments: str, model: Path = nano):
        done = CliRunner().invoke(app, [str(model), "-o", str(out), *arguments])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, results.read(out)

    return call


def test_all_variants_are_asked_the_same_items(run):
    code, rows = run("--variants", ALL_OF, "--tasks", "nano,divergence/problems", "--limit", "3",
                     "--tokens", "60")  # fmt: skip
    assert code == 0
    scores = [row for row in rows if row["kind"] == "accuracy"]
    assert [row["kind"] for row in rows] == ["run"] + ["accuracy"] * 12
    for task, metric in {(row["task"], row["metric"]) for row in scores}:
        same = [r for r in scores if (r["task"], r["metric"]) == (task, metric)]
        assert [f"{r['engine']}:{r['variant']}" for r in same] == ALL_OF.split(",")
        assert len({(r["data_sha256"], r["model_sha256"], r["count"]) for r in same}) == 1
    by_label = {(r["engine"], r["variant"], r["metric"]): r for r in scores}
    assert by_label["neuralchat_lite", "fp32", "kl_mean"]["value"] == pytest.approx(0, abs=1e-9)
    assert by_label["transformers", "fp32", "kl_mean"]["value"] == pytest.approx(0, abs=1e-6)
    assert by_label["neuralchat_lite", "int4-bf16", "kl_mean"]["value"] > 1e-6
    assert by_label["transformers", "fp32", "top1_agreement"]["value"] == 1
    assert by_label["neuralchat_lite", "fp32", "exact_match"]["items"] == [1, 1, 1]


def test_what_the_file_holds_is_not_measured_again(run):
    arguments = ("--variants", "neuralchat_lite:fp32", "--tasks", "nano", "--limit", "2")
    _, before = run(*arguments)
    _, after = run(*arguments)
    assert [row["kind"] for row in after] == ["run", "accuracy", "run"]
    assert after[:2] == before
    _, more = run("--variants", "neuralchat_lite:fp32", "--tasks", "nano", "--limit", "3")
    assert more[-1]["count"] == 3


def test_a_measure_that_fails_is_a_row_and_the_rest_goes_on(run, monkeypatch):
    def broken(model, name, asked):
        raise ZeroDivisionError("no items")
        yield

    monkeypatch.setitem(measures.MEASURES, "perplexity/problems", broken)
    code, rows = run("--variants", "neuralchat_lite:fp32", "--tasks", "perplexity/problems,nano",
                     "--limit", "2")  # fmt: skip
    assert code == 0
    assert [row["kind"] for row in rows] == ["run", "failure", "accuracy"]
    assert rows[1]["stage"] == "accuracy: perplexity/problems"
    assert rows[1]["reason"] == "ZeroDivisionError: no items"
    assert any("raise ZeroDivisionError" in line for line in rows[1]["last_lines"])


def test_an_engine_that_cannot_load_is_a_row_and_tried_again_next_time(run, monkeypatch):
    def refuses(variant, model, sha256, context_length):
        raise ConfigError("this CPU has no such units")

    with monkeypatch.context() as broken:
        broken.setattr(run_module, "open_variant", refuses)
        _, rows = run("--variants", "neuralchat_lite:fp32", "--tasks", "nano", "--limit", "1")
    assert rows[1]["stage"] == "accuracy: load"
    assert rows[1]["reason"] == "ConfigError: this CPU has no such units"
    _, rows = run("--variants", "neuralchat_lite:fp32", "--tasks", "nano", "--limit", "1")
    assert rows[-1]["kind"] == "accuracy"


def test_ctrl_c_keeps_what_was_measured(nano, tmp_path, monkeypatch):
    def interrupted(model, name, asked):
        raise KeyboardInterrupt
        yield

    monkeypatch.setitem(measures.MEASURES, "perplexity/problems", interrupted)
    out = tmp_path / "run.jsonl"
    with pytest.raises(KeyboardInterrupt):
        accuracy.accuracy_command(
            [str(nano)], out, "nano,perplexity/problems", "neuralchat_lite:fp32", limit=1
        )
    assert [row["kind"] for row in results.read(out)] == ["run", "accuracy"]


def test_a_task_of_the_harness_is_scored_as_it_scores(run, evaluation_sets):
    code, rows = run("--variants", "neuralchat_lite:int4-bf16", "--tasks", "winogrande,gsm8k",
                     "--limit", "3", "--data", str(evaluation_sets))  # fmt: skip
    assert code == 0
    assert [(row["task"], row["metric"], row["shots"]) for row in rows[1:]] == [
        ("winogrande", "acc", 5),
        ("gsm8k", "exact_match", 5),
    ]
    assert rows[1]["conditions"]["stands_in"].startswith("shots come from the last 200 items")
    assert set(rows[1]["items"]) <= {0, 1}


def test_the_story_models_know_how_stories_end(stories, evaluation_sets, run):
    _, rows = run("--variants", "neuralchat_lite:fp32", "--tasks", "tinystories_endings",
                  "--limit", "60", "--data", str(evaluation_sets), model=stories)  # fmt: skip
    assert rows[1]["value"] > 0.4  # chance is 0.25, reference.json says 0.50 of all 500


def test_names_that_are_not_there_list_what_is():
    with pytest.raises(ConfigError, match="'int3': choose one of neuralchat_lite, transformers"):
        chosen("neuralchat_lite,int3")
    with pytest.raises(ConfigError, match="no variant is named"):
        chosen(" , ")
    with pytest.raises(ConfigError, match="unknown task drop: expected some of arc_challenge"):
        accuracy.checked_tasks("nano,drop")
    assert chosen("transformers")[0].engine == "transformers"
    own = [variant for variant in scored_variants() if variant.engine == "neuralchat_lite"]
    assert list(chosen("neuralchat_lite:fp32,neuralchat_lite")) == own
