"""When the machine is called busy, and on which CPUs a run stays."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.latency import machine
from benchmarks.latency.machine import CpuTime, Watch, busy_warnings
from benchmarks.rows.run import ROOT


def warnings(
    probes: tuple[float, ...] = (10.0, 10.5), steal: float = 0.0, load: float = 0.1
) -> list[str]:
    return list(busy_warnings(probes, steal, load, cpus=2))


def test_a_quiet_machine_gets_no_warning() -> None:
    assert warnings() == []
    assert warnings(probes=(9.3, 10.0, 10.7)) == []


@pytest.mark.parametrize(
    ("busy", "word"),
    [
        ({"probes": (8.0, 10.0, 10.0)}, "spread by 20%"),
        ({"steal": 0.05}, "5.0% of the CPU time"),
        ({"load": 1.5}, "load average was 1.5"),
    ],
)
def test_each_sign_of_a_busy_machine_is_said(busy: dict, word: str) -> None:
    [warning] = warnings(**busy)
    assert word in warning


def test_steal_is_a_share_of_the_time_that_has_passed() -> None:
    assert CpuTime(1200, 50).steal_share_since(CpuTime(1000, 40)) == 10 / 200
    assert CpuTime(5, 1).steal_share_since(CpuTime(5, 1)) == 0


def test_cpu_time_goes_on() -> None:
    earlier = CpuTime.now()
    sum(range(3_000_000))  # some hundredths of a second
    assert CpuTime.now().total > earlier.total > 0


def test_pinning_keeps_a_process_on_one_cpu_of_a_core() -> None:
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from benchmarks.latency import machine\n"
        "before = os.sched_getaffinity(0); chosen = machine.pin(1)\n"
        "assert os.sched_getaffinity(0) == set(chosen) <= before and len(chosen) == 1"
    )
    subprocess.run([sys.executable, "-c", code, str(ROOT)], check=True)


def test_the_load_is_that_before_the_run_which_is_busy_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "load_average", lambda: 0.0)
    watch = Watch()
    monkeypatch.setattr(machine, "load_average", lambda: 9.0)
    assert not any("load average" in warning for warning in watch.warnings([1.0, 1.0], 2))
    late = Watch()
    assert any("load average was 9.0" in warning for warning in late.warnings([1.0, 1.0], 2))
