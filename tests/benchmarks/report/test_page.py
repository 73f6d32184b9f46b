"""The report: its numbers are those of the rows, its page needs nothing but itself."""

from __future__ import annotations

import itertools
import json
import re
import xml.etree.ElementTree as ET

import pytest
from typer.testing import CliRunner

pytest.importorskip("scipy", reason="scipy is not installed: pip install '.[bench]'")
pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install '.[bench]'")

import typer

from benchmarks.accuracy.lm_eval_tasks import LEADERBOARD
from benchmarks.cli.results import report_command
from benchmarks.report import page as report
from benchmarks.report import summary
from benchmarks.report.plots import SERIES, VARIABLES, Styles, apart, frontier
from benchmarks.rows import results
from benchmarks.rows.kinds import ResultsError

BF16 = {"engine": "transformers", "variant": "bf16"}
INT8 = {"variant": "int8-bf16"}


@pytest.fixture
def rows(accuracy_row, latency_row):
    """A small run: three variants, two contexts, one task, one failure."""
    run = {
        "kind": "run",
        "run_id": "r",
        "time": "2026-01-02T03:04:05+00:00",
        "machine": {"cpu": "A <fast> CPU", "threads": 2},
        "versions": {"torch": "2.13"},
        "commit": "0123456789abcdef",
        "arguments": {},
    }
    found = [run]
    found += [
        {"kind": "probe", "bandwidth_bytes_per_s": rate, "threads": 2, "time": "now"}
        for rate in (19.5e9, 20e9, 20.5e9)
    ]
    for variant, step in (({}, 0.04), (INT8, 0.08), (BF16, 0.2)):
        for context in (32, 512):
            case = {"context": context, "prompt_sha256": f"p{context}", **variant}
            found.append(latency_row([step, step, step * 2], **case))
            found.append(latency_row([context / 100], "first_token_s", **case))
            found.append(latency_row([1e9 * step * 10], "bytes_per_token", unit="bytes", **case))
        alone = {"context": None, "batch": None, "prompt_sha256": None, "unit": "bytes", **variant}
        found.append(latency_row([3e9], "peak_rss_bytes", **alone))
        found.append(latency_row([1e9], "private_bytes", **alone))
    found.append(accuracy_row([1, 1, 1, 1, 0], model="1b", **BF16))
    found.append(accuracy_row([1, 1, 1, 0, 0], model="1b"))
    found.append(accuracy_row([1, 1, 1, 1, 0], model="1b", **INT8))
    names = {"engine": "itrex", "variant": "int4", "model": "1b"}
    reason = {"stage": "load", "reason": "needs | AMX", "last_lines": []}
    return [*found, {"kind": "failure", **names, **reason}]


def test_speeds_are_medians_of_all_rounds_over_the_measured_bandwidth(rows):
    speed = summary.speeds(rows)[0]
    assert (speed.label, speed.batch, speed.context) == ("neuralchat_lite:int4-bf16", 1, 32)
    assert speed.tokens_per_s == pytest.approx(25)
    # 0.4 GB in 0.04 s are 10 GB/s, of 20
    assert speed.roofline_share(20e9) == pytest.approx(0.5)
    assert summary.bandwidth(rows).median == 20e9


def test_a_loss_is_that_of_the_same_items_in_points(rows):
    losses = {loss.label: loss for loss in summary.losses(rows, "transformers:bf16")}
    assert losses["neuralchat_lite:int4-bf16"].points == pytest.approx(20)
    # differences 0 0 0 100 0, one lost and one won: standard deviation 69.0, over the root of 7
    assert losses["neuralchat_lite:int4-bf16"].error == pytest.approx(26.08, abs=0.01)
    assert losses["neuralchat_lite:int8-bf16"].points == 0
    assert losses["neuralchat_lite:int8-bf16"].error > 10, "five equal items are not certain"


def test_the_baseline_is_bf16_unless_asked_otherwise(rows):
    assert summary.baseline_of(rows) == "transformers:bf16"
    assert summary.baseline_of(rows, "neuralchat_lite:int8-bf16") == "neuralchat_lite:int8-bf16"
    with pytest.raises(ResultsError, match="'ipex:bf16' has no scores: choose one of"):
        summary.baseline_of(rows, "ipex:bf16")
    assert summary.baseline_of([row for row in rows if row["kind"] != "accuracy"]) is None


def test_both_forms_tell_the_same_numbers(rows):
    built = report.build(rows)
    markdown, page = built.markdown(), built.html()
    assert "| neuralchat_lite:int4-bf16 | 1 | 32 | 25.00 | 40.00 | 72.00 | 3 | 0.320 |" in markdown
    assert "| itrex:int4 | 1b | load | needs / AMX |" in markdown
    for text in ("25.00", "-1 +0", "80.00 (37.6 to 96.4)", "needs | AMX", "20.0 GB/s"):
        assert text in page
    assert "A &lt;fast&gt; CPU" in page


def test_it_opens_with_what_to_use_and_ends_with_the_machine(rows):
    built = report.build(rows)
    sentence = built.ranking.sentence
    # int4 is faster, but loses 20 points.
    assert sentence.startswith("Use neuralchat_lite:int8-bf16: 1b decodes 12.5 tokens/s, 2.5 times")
    markdown = built.markdown()
    parts = (sentence, "| 1 | ", "## Speed: 1b", f"## {report.CONDITIONS}", "A <fast> CPU")
    places = [markdown.index(part) for part in parts]
    assert places == sorted(places)
    page = built.html()
    assert re.search(r"<h1>.*</h1>\s*<p class=\"lead\">Use ", page)
    assert page.index("<details>") < page.index("A &lt;fast&gt; CPU") < page.index("</details>")


def test_a_picture_has_speed_and_accuracy_of_one_model_alone(rows, accuracy_row):
    others = [row | {"model": "tiny"} if row["kind"] == "accuracy" else row for row in rows]
    assert "What a lost point buys" not in report.build(others).html()
    assert "What a lost point buys" in report.build(rows).html()


def test_rows_name_the_flags_that_a_cpu_made_an_engine_take(rows, accuracy_row, latency_row):
    flags = {"weights_prepack=False": "no bf16 without AVX-512"}
    ipex = {"engine": "ipex", "variant": "bf16", "conditions": {"flags": flags, "api": "optimize"}}
    alone = {"context": None, "batch": None, "prompt_sha256": None, "unit": "bytes"}
    more = [
        latency_row([0.1], **ipex),
        latency_row([1e9], "peak_rss_bytes", **alone, **ipex),
        accuracy_row([1, 1, 1, 1, 1], **ipex),
        latency_row([0.1], variant="int4-fp32", conditions={"isa": "avx2"}),
    ]
    lines = report.build([*rows, *more]).markdown().splitlines()
    told = [line for line in lines if line.startswith("| ipex:bf16 |")]
    named = [line for line in told if "weights_prepack=False: no bf16 without AVX-512" in line]
    assert len(named) == 2, "the table of speeds and the table of scores"
    assert "| ipex:bf16 |  | api=optimize |" in told, "how it ran"
    assert any(line.endswith("| isa=avx2 |") for line in lines)


def test_the_page_stands_alone_in_both_colour_schemes_and_on_a_telephone(rows):
    page = report.build(rows).html()
    own = re.sub(r'(xmlns(:\w+)?|rdf:\w+)="[^"]*"', "", page)
    own = re.sub(r"<metadata>.*?</metadata>", "", own, flags=re.DOTALL)
    assert not re.findall(r"https?://", own)
    assert not re.findall(r"<(script|link|img)\b|@import|url\((?!#)", own)
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page
    assert "overflow-x: auto" in page


def test_every_picture_is_there_and_takes_its_colours_from_the_page(rows):
    page = report.build(rows).html()
    pictures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    titles = re.findall(r"<figcaption><b>(.*?)</b>", page)
    assert titles == [
        "What a lost point buys",
        "Time per token",
        "Share of the roofline",
        "Time to the first token",
        "Memory",
        "Change of the scores",
    ]
    assert len(pictures) == len(titles)
    named: dict[str, bytes] = {}
    for svg in pictures:
        root = ET.fromstring(svg)
        assert root.get("viewBox") and root.get("width") is None and root.get("height") is None
        assert "var(--ink)" in svg and "var(--series-1)" in svg
        assert not set(re.findall(r"#[0-9a-f]{6}\b", svg)) - {"#ffffff", "#000000"}
        for element in root.iter():
            if (name := element.get("id")) is not None:
                content = ET.tostring(element).strip()
                assert named.setdefault(name, content) == content, "one name, one thing, in a page"
    for variable in VARIABLES.values():
        assert page.count(f"{variable}:") == 2, "light and dark"


def test_the_published_scores_stand_beside_the_models_own(rows, accuracy_row):
    model = "Intel/neural-chat-7b-v3-2"
    own = [accuracy_row([1, 0], task=task, model=model) for task in LEADERBOARD]
    text = report.build([*rows, *own]).markdown()
    (line,) = (line for line in text.splitlines() if line.startswith("| published"))
    assert line.split(" | ")[1] == "68.28"
    assert "67.49" in line and "55.12" in line
    assert "| neuralchat_lite:int4-bf16 | 50.00 |" in text
    assert text.count("| published") == 1, "only where that model was measured"


def test_a_busy_machine_is_warned_of(rows):
    probe = {"kind": "probe", "bandwidth_bytes_per_s": 10e9, "threads": 2, "time": "now"}
    assert report.build(rows).warnings == []
    (warning,) = report.build([*rows, probe, probe]).warnings
    assert warning.startswith("The bandwidth probes spread by 54%")


def test_scores_alone_and_times_alone_make_a_report(rows):
    for kind in ("accuracy", "latency"):
        built = report.build([row for row in rows if row["kind"] == kind])
        assert built.sections and built.html() and built.markdown()
    with pytest.raises(ResultsError, match="no measurement is among the results"):
        report.build(rows[:4])


def test_the_command_writes_three_files_from_several(rows, tmp_path):
    app = typer.Typer()
    app.command()(report_command)
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for index, row in enumerate(rows):
        results.append(files[index % 2], row)
    out = tmp_path / "out"
    done = CliRunner().invoke(app, [*map(str, files), "-o", str(out)])
    assert done.exit_code == 0, done.exception
    written = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert sorted(map(json.dumps, written)) == sorted(map(json.dumps, rows))
    assert (out / "report.md").read_text().startswith("# ")
    assert (out / "report.html").read_text().startswith("<!doctype html>")


def test_the_frontier_is_what_no_other_point_beats_in_both():
    points = [(0.0, 5.0), (1.0, 4.0), (2.0, 9.0), (2.0, 8.0), (3.0, 9.0), (0.0, 3.0)]
    want = sorted(
        p for p in points if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)
    )
    assert frontier(points) == want == [(0.0, 5.0), (2.0, 9.0)]


@pytest.mark.parametrize("places", [[0.5, 0.5, 0.5], [0.98, 1.2, 0.99], [-0.1, 0.0, 0.9], [0.3]])
def test_names_beside_a_picture_keep_apart_in_their_order_and_inside(places):
    moved = apart(places, 0.1)
    ordered = sorted(moved)
    assert all(high - low > 0.0999 for low, high in itertools.pairwise(ordered))
    assert sorted(range(len(places)), key=lambda i: (places[i], i)) == sorted(
        range(len(places)), key=lambda i: (moved[i], i)
    )
    assert ordered[0] >= -1e-9 and ordered[-1] <= 1


def test_engines_differ_by_colour_and_variants_by_mark():
    styles = Styles(["a:x", "b:x", "a:y", "a:x"])
    assert styles.colour("a:x") == styles.colour("a:y") == SERIES[0]
    assert styles.colour("b:x") == SERIES[1]
    assert styles.mark("a:x") != styles.mark("a:y")
