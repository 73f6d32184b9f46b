"""Results files: what is in them is whole, and what is not is said."""

from __future__ import annotations

import json

import pytest

from benchmarks.rows import kinds, results
from benchmarks.rows.kinds import ResultsError

PROBE = {"kind": "probe", "bandwidth_bytes_per_s": 2e10, "threads": 2, "time": "now"}


def test_rows_come_back_as_they_were_written(tmp_path, accuracy_row, latency_row):
    file = tmp_path / "new" / "run.jsonl"
    rows = [PROBE, accuracy_row(), latency_row([0.1, 0.2])]
    for row in rows:
        results.append(file, row)
    assert results.read(file) == rows


def test_a_line_cut_off_while_writing_is_left_out_and_written_over(tmp_path, accuracy_row):
    file = tmp_path / "run.jsonl"
    results.append(file, PROBE)
    with file.open("a") as torn:
        torn.write(json.dumps(accuracy_row(items=[1] * 5000))[:9000])  # longer than a block
    with pytest.warns(UserWarning, match="line 2 was cut off"):
        assert results.read(file) == [PROBE]
    results.append(file, accuracy_row())
    assert results.read(file) == [PROBE, accuracy_row()]


def test_a_first_line_cut_off_leaves_an_empty_file_to_go_on_with(tmp_path):
    file = tmp_path / "run.jsonl"
    file.write_text('{"kind":')
    results.append(file, PROBE)
    assert results.read(file) == [PROBE]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "guess"}, "kind must be one of run, probe, latency, accuracy, kernel, failure"),
        ({"shots": "5"}, "accuracy: shots must be int, got '5'"),
        ({"shots": True}, "accuracy: shots must be int, got True"),
        ({"count": 3}, "3 items are counted, but 4 are listed"),
        ({"value": float("nan")}, "not finite"),
        ({"items": [1, 0, 1, float("inf")]}, "not finite"),
    ],
)
def test_a_row_that_keeps_no_schema_is_not_written(tmp_path, accuracy_row, change, message):
    file = tmp_path / "run.jsonl"
    with pytest.raises(ResultsError, match=message):
        results.append(file, accuracy_row() | change)
    assert not file.exists()


def test_a_missing_field_is_named(accuracy_row):
    row = accuracy_row()
    del row["data_sha256"]
    with pytest.raises(ResultsError, match="accuracy: data_sha256 must be str, it is missing"):
        kinds.check(row)


def test_a_latency_has_one_of_the_known_metrics(latency_row):
    with pytest.raises(ResultsError, match="metric must be one of load_cold_s"):
        kinds.check(latency_row([1.0], metric="speed"))


def test_what_is_no_row_is_named_with_file_and_line(tmp_path):
    file = tmp_path / "run.jsonl"
    for line, message in [
        ("{nonsense", "is not JSON"),
        ("[1]", "not a JSON object"),
        ("{}", "kind"),
    ]:
        file.write_text(f"{json.dumps(PROBE)}\n{line}\n")
        with pytest.raises(ResultsError, match=f"run.jsonl, line 2.*{message}"):
            results.read(file)
    with pytest.raises(ResultsError, match="cannot be read"):
        results.read(tmp_path / "nowhere.jsonl")


def test_done_is_what_was_measured_not_what_failed(accuracy_row, latency_row):
    failure = {"kind": "failure", "engine": "x", "variant": "y", "model": "z"}
    failure |= {"stage": "load", "reason": "no", "last_lines": []}
    rows = [PROBE, failure, accuracy_row(), latency_row([1.0]), latency_row([1.0], round=1)]
    done = kinds.done(rows)
    assert len(done) == 3
    assert kinds.key(accuracy_row(value=0.3)) in done  # a score does not name a measurement
    assert kinds.key(accuracy_row(limit=20)) not in done
    assert kinds.key(latency_row([2.0], round=2)) not in done
