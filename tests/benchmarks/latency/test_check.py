"""Our figures beside those of the engines' own clocks."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.latency import check
from benchmarks.latency.check import Agreement, agreements
from neuralchat_lite.errors import ConfigError

Rows = Callable[..., dict[str, Any]]


def test_ten_percent_are_agreement_and_more_are_not() -> None:
    assert Agreement("x", 1.09, 1.0).agrees and Agreement("x", 0.91, 1.0).agrees
    assert not Agreement("x", 1.11, 1.0).agrees and not Agreement("x", 0.89, 1.0).agrees


def test_a_clock_is_compared_with_the_mean_of_its_round_and_rounds_by_medians(
    latency_row: Rows,
) -> None:
    own = [{"clock": "theirs", "time_per_token_s": value} for value in (2.0, 2.5, 9.0)]
    rows = [
        latency_row(samples, round=number, conditions={"own": own[number]})
        for number, samples in enumerate([[1.0, 1.0, 7.0], [2.0, 2.0, 8.0], [8.0, 8.0, 14.0]])
    ]
    [found] = agreements([*rows, latency_row([5.0])])
    assert (found.ours, found.own) == (4.0, 2.5)
    assert "theirs" in found.what


def test_results_without_a_clock_are_refused(latency_row: Rows) -> None:
    with pytest.raises(ConfigError, match="llamacpp or openvino"):
        list(agreements([latency_row([1.0])]))


@pytest.fixture
def llama_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that answers as llama-bench does, and keeps what it was asked."""
    monkeypatch.setenv("NEURALCHAT_LITE_BENCHMARKS", str(tmp_path))
    answer = [
        {"n_prompt": 512, "n_gen": 0, "samples_ts": [99.0, 100.0, 180.0]},
        {"n_prompt": 0, "n_gen": 16, "samples_ts": [9.0, 10.0, 11.0]},
    ]
    program = tmp_path / "llama-bench"
    program.write_text(
        f"#!{sys.executable}\nimport sys, json, pathlib\n"
        f"pathlib.Path({str(tmp_path / 'asked')!r}).write_text(json.dumps(sys.argv[1:]))\n"
        f"print({json.dumps(answer)!r})\n"
    )
    program.chmod(0o755)
    return program


def test_llama_bench_runs_on_the_measured_file_with_the_same_threads(
    latency_row: Rows, llama_bench: Path, tmp_path: Path
) -> None:
    mine = {"engine": "llamacpp", "variant": "Q4_0", "shape_sha256": "0123456789abcdef"}
    rows = [
        latency_row([0.125, 0.1, 0.08], **mine),
        latency_row([95.0, 98.0, 400.0], "prefill_tokens_per_s", context=512, **mine),
    ]
    prefill, decoded = agreements(rows, llama_bench)
    assert (prefill.ours, prefill.own) == (98.0, 100.0)
    assert (decoded.ours, decoded.own) == (10.0, 10.0)
    asked = json.loads((tmp_path / "asked").read_text())
    file = tmp_path / "1b-0123456789ab" / "llamacpp-Q4_0" / "model.gguf"
    assert asked[asked.index("-m") + 1] == str(file)
    assert asked[asked.index("-t") + 1] == "2"


def test_a_llama_bench_that_fails_says_why(latency_row: Rows, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'no such model' >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(ConfigError, match="no such model"):
        check.run_llama_bench(broken, tmp_path / "model.gguf", 2)
    with pytest.raises(ConfigError, match="cannot be run"):
        check.run_llama_bench(tmp_path / "absent", tmp_path / "model.gguf", 2)
