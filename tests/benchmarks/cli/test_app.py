"""The command line of the benchmarks, from a shape to a file of results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cli.app import main
from benchmarks.models import shapes
from benchmarks.models.shapes import shape
from benchmarks.rows import results
from neuralchat_lite.kernels import runtime


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny = shape(64, 128, 2, 4, 2) | {"vocab_size": 96}
    monkeypatch.setitem(shapes.SHAPES, "tiny", tiny)
    monkeypatch.setenv("NEURALCHAT_LITE_BENCHMARKS", str(tmp_path / "models"))
    monkeypatch.setenv("NEURALCHAT_LITE_ENVIRONMENTS", str(tmp_path / "environments"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *line.split()])
    with pytest.raises(SystemExit) as exit:
        main()
    return int(exit.value.code or 0)


@pytest.mark.slow
def test_two_engines_are_measured_resumed_reported_and_cleaned_up(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = "-e neuralchat_lite:int4-bf16 -e transformers:fp32 --shape tiny --threads 1"
    short = "--contexts 32 --batches 1,4 --rounds 1 --new-tokens 3"
    assert run(f"latency --quick {asked} {short} -o out.jsonl", monkeypatch) == 0
    rows = results.read(folders / "out.jsonl")
    assert [row for row in rows if row["kind"] == "failure"] == []
    steps = [row for row in rows if row.get("metric") == "time_per_token_s"]
    assert {(row["engine"], row["batch"]) for row in steps} == {
        (engine, batch) for engine in ("neuralchat_lite", "transformers") for batch in (1, 4)
    }
    assert all(len(row["samples"]) == 2 and min(row["samples"]) > 0 for row in steps)
    shown = capsys.readouterr().out
    assert "batch 4, context 32" in shown and "transformers:fp32" in shown

    assert run(f"latency --quick {asked} {short} --resume out.jsonl", monkeypatch) == 0
    again = results.read(folders / "out.jsonl")
    assert len([row for row in again if row["kind"] == "latency"]) == len(
        [row for row in rows if row["kind"] == "latency"]
    )
    assert run("report out.jsonl -o report", monkeypatch) == 0
    for name in ("report.md", "report.html"):
        page = (folders / "report" / name).read_text(encoding="utf-8")
        assert all(label in page for label in ("neuralchat_lite:int4-bf16", "transformers:fp32"))
    assert run("clean", monkeypatch) == 0
    assert list((folders / "models").rglob("*.safetensors")) == []


def test_kernels_are_shown_and_written(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.latency.machine.probe_bandwidth", lambda _: 5e9)
    before = runtime.threads()
    short = "--shape 48x96 --rows 1,32 --compute int8 --rounds 2 --seconds 0 --threads 1"
    try:
        assert run(f"kernels --isa generic {short} -o k.jsonl", monkeypatch) == 0
    finally:
        runtime.set_threads(int(before.value))
    first, *rows = results.read(folders / "k.jsonl")
    assert first["kind"] == "run" and first["machine"]["threads"] == 1
    found = [(row["weights"], row["rows"]) for row in rows]
    assert found == [("int4", 1), ("int4", 32), ("int8", 1), ("int8", 32)]
    shown = capsys.readouterr().out
    assert "generic: 48 outputs x 96 columns, groups of 32, 1 threads, 5 GB/s" in shown
    assert "medians of 2 rounds" in shown and "scalar (generic)" in shown
    assert run("kernels -o k.jsonl", monkeypatch) == 2


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("latency --quick -e vllm", "there is no engine or variant 'vllm'"),
        ("latency --quick -e llamacpp:Q4_0", "python -m benchmarks setup llamacpp"),
        ("latency --quick --thorough", "exclude each other"),
        ("latency --quick --shape 13b", "no shape '13b'"),
        ("latency --quick --shape tiny --model x", "give one"),
        ("latency --quick --contexts 33", "no case has these"),
        ("latency --quick --contexts many", "expected numbers"),
        ("latency --quick --resume absent.jsonl", "absent.jsonl is missing"),
        ("kernels --isa mmx", "--isa=mmx cannot be used (not in this build)"),
        ("kernels --shape 5632", "--shape must be OUTPUTSxCOLUMNS"),
        ("kernels --rows 1,many", "--rows must be numbers"),
        ("kernels --compute int4", "there is no product int4 x int4"),
        ("kernels --group-size 33", "group_size must be 32"),
        ("kernels --threads 0", "--threads must be an integer"),
        ("setup vllm", "there is no engine 'vllm'"),
        ("latency --fast", "No such option"),
    ],
)
def test_bad_input_is_one_line_that_says_the_remedy(
    line: str,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(line, monkeypatch) == 2
    said = capsys.readouterr().err.strip()
    assert word in said and "\n" not in said


def test_results_are_not_overwritten(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folders / "out.jsonl").write_text("")
    assert run("latency --quick --shape tiny -o out.jsonl", monkeypatch) == 2
    assert "--resume" in capsys.readouterr().err


def test_the_list_names_every_engine_and_what_it_would_cost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.engines.table import ENGINES

    assert run("list", monkeypatch) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ENGINES)
    assert "not installed" in shown and "160 MB" in shown


def test_help_loads_no_heavy_package() -> None:
    heavy = ("torch", "transformers", "scipy", "matplotlib")
    code = f"import sys, benchmarks.cli.app; print(*[n for n in {heavy} if n in sys.modules])"
    root = Path(shapes.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
