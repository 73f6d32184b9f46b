from __future__ import annotations

import math

import numpy as np
import pytest

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.kernels import cpu


def test_the_best_instruction_set_that_runs_is_chosen():
    available = {"amx": "this CPU lacks amx_int8", "avx2": "", "generic": ""}
    choice = cpu.choose_isa(available, None)
    assert choice.value == "avx2"
    assert "amx: this CPU lacks amx_int8" in choice.why
    assert cpu.choose_isa(available, "generic").value == "generic"


@pytest.mark.parametrize(
    ("name", "reason"), [("amx", "this CPU lacks amx_int8"), ("mmx", "not in this build")]
)
def test_an_instruction_set_that_cannot_run_is_refused_by_name(name, reason):
    available = {"amx": "this CPU lacks amx_int8", "avx2": "", "generic": ""}
    with pytest.raises(ConfigError, match=f"{name} cannot be used \\({reason}\\): .*avx2, generic"):
        cpu.choose_isa(available, name)


def fake_cgroup(tmp_path, membership, files):
    for name, text in files.items():
        path = tmp_path / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "membership").write_text(membership)
    return cpu.cgroup_cpus(tmp_path / "sys", tmp_path / "membership")


def test_the_tightest_quota_above_us_counts_in_cgroup_version_2(tmp_path):
    files = {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}
    assert fake_cgroup(tmp_path, "0::/a/b\n", files) == 1.5


def test_the_quota_of_cgroup_version_1_is_read(tmp_path):
    files = {
        "cpu,cpuacct/x/cpu.cfs_quota_us": "300000",
        "cpu,cpuacct/x/cpu.cfs_period_us": "100000",
    }
    assert fake_cgroup(tmp_path, "4:memory:/x\n3:cpu,cpuacct:/x\n", files) == 3.0


def test_no_quota_is_infinite(tmp_path):
    assert fake_cgroup(tmp_path, "0::/\n", {}) == math.inf


def threads_with(monkeypatch, allowed, siblings, quota):
    monkeypatch.delenv(cpu.THREADS_VARIABLE, raising=False)
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda _: set(allowed))
    monkeypatch.setattr(cpu, "core_of", siblings.get)
    monkeypatch.setattr(cpu, "cgroup_cpus", lambda: quota)
    return cpu.default_threads()


def test_threads_are_physical_cores_within_affinity_and_quota(monkeypatch):
    siblings = {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"}
    assert threads_with(monkeypatch, range(8), siblings, math.inf)[0] == 4
    assert threads_with(monkeypatch, [0, 4, 1], siblings, math.inf)[0] == 2
    count, choice = threads_with(monkeypatch, range(8), siblings, 2.5)
    assert count == 2
    assert "quota of 2.5 CPUs" in choice.why
    assert threads_with(monkeypatch, range(8), siblings, 0.5)[0] == 1


def test_the_environment_can_set_the_threads(monkeypatch):
    monkeypatch.setenv(cpu.THREADS_VARIABLE, "3")
    assert cpu.default_threads()[0] == 3


@pytest.mark.parametrize("value", ["many", "", "0", "-1", "2.5", "²", "100000"])
def test_an_impossible_count_in_the_environment_is_refused(monkeypatch, value):
    monkeypatch.setenv(cpu.THREADS_VARIABLE, value)
    with pytest.raises(ConfigError, match=f"{cpu.THREADS_VARIABLE} must be an integer from 1"):
        cpu.default_threads()


def test_a_count_of_threads_may_come_from_numpy() -> None:
    assert type(cpu.check_threads(np.int64(3), "threads")) is int
    with pytest.raises(ConfigError):
        cpu.check_threads(np.float64(3), "threads")
