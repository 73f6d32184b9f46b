"""The first row of a run says where it was made, and with what."""

from __future__ import annotations

import json
import os
import subprocess

import psutil
import pytest

from benchmarks.rows import run
from benchmarks.rows.kinds import check


def test_the_first_row_keeps_the_schema() -> None:
    row = run.run_row(2, {"limit": 3}, ["no-such-package"])
    assert check(json.loads(json.dumps(row))) == row
    assert row["versions"]["no-such-package"] == "not installed"


def test_the_record_holds_what_a_reader_needs_and_is_json() -> None:
    record = json.loads(json.dumps(run.describe(threads=2)))
    assert record["threads"] == 2 and record["cpu"]
    assert record["memory_bytes"] == psutil.virtual_memory().total
    assert record["affinity"] == sorted(os.sched_getaffinity(0))
    assert set(record["flags"]) <= set(run.FLAGS)


def test_the_commit_is_that_of_this_source_tree() -> None:
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=run.ROOT, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip("this source tree is no git checkout")
    found = run.commit()
    assert found is not None
    assert done.stdout.startswith(found.removesuffix("-dirty"))
