"""The machine of a measurement, and whether it was quiet: without both, a number is a rumour."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from neuralchat_lite import installed_version
from neuralchat_lite.environments.host import this_cpu
from neuralchat_lite.kernels import native
from neuralchat_lite.kernels.cpu import cpu_model

# Of the flags of a CPU, those by which engines choose their kernels.
FLAGS = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimddp", "i8mm", "sve",
)  # fmt: skip
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
MOST_SPREAD = 0.15  # of the bandwidth probes, (largest - smallest) / median
MOST_STEAL = 0.02  # share of the CPU time that the hypervisor gave to others
PROBE_SECONDS = 0.5
ROOT = Path(__file__).parents[2]


def describe(threads: int) -> dict[str, Any]:
    """What the machine is, and what we may use of it."""
    return {
        "cpu": cpu_model(),
        "flags": cpu_flags(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cpus": psutil.cpu_count(),
        "affinity": sorted(os.sched_getaffinity(0)),
        "threads": threads,
        "memory_bytes": psutil.virtual_memory().total,
        "governor": read_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "hypervisor": "hypervisor" in this_cpu(),
        "kernel": platform.release(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": list(os.getloadavg()),
    }


def cpu_flags() -> list[str]:
    present = this_cpu()
    return [flag for flag in FLAGS if flag in present]


def read_line(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def run_row(
    threads: int, arguments: Mapping[str, Any], packages: Sequence[str] = ()
) -> dict[str, Any]:
    """The first row of a run: where it is made, and with what.

    packages: that matter to it beside those of every run
    """
    return {
        "kind": "run",
        "run_id": uuid.uuid4().hex[:12],
        "time": now(),
        "machine": describe(threads),
        "versions": versions((*PACKAGES, *packages)),
        "commit": commit(),
        "arguments": dict(arguments),
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions in the harness' own environment; each engine says its own."""
    found = {"neuralchat_lite": installed_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str | None:
    """The commit of this source tree, "-dirty" behind it when files differ; None without git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def pin(threads: int) -> list[int]:
    """Keep this process and its workers on `threads` CPUs, one of each physical core."""
    by_core: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = read_line(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        by_core.setdefault(siblings or str(cpu), cpu)
    chosen = sorted(by_core.values())[:threads]
    os.sched_setaffinity(0, chosen)
    return chosen


@dataclass(frozen=True)
class CpuTime:
    """Clock ticks of all CPUs since boot: all of them, and those that the hypervisor took."""

    total: int
    steal: int

    @classmethod
    def now(cls) -> CpuTime:
        first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
        # user nice system idle iowait irq softirq steal; guest times are within user's
        ticks = [int(value) for value in first.split()[1:9]]
        return cls(sum(ticks), ticks[7])

    def steal_share_since(self, earlier: CpuTime) -> float:
        passed = self.total - earlier.total
        return (self.steal - earlier.steal) / passed if passed else 0.0


def probe_bandwidth(seconds: float = PROBE_SECONDS) -> float:
    """Bytes a second that the machine reads now, with the threads of our kernels."""
    return native.measure_bandwidth(seconds)


def spread(values: Sequence[float]) -> float:
    """(largest - smallest) / median"""
    return (max(values) - min(values)) / statistics.median(values) if values else 0.0


def busy_warnings(
    probes: Sequence[float], steal_share: float, load_average: float, cpus: int
) -> Iterable[str]:
    """What speaks against the measurements, in words.

    probes: bytes/s; steal_share: of the time of the run; load_average: before it began
    """
    if spread(probes) > MOST_SPREAD:
        yield (
            f"the bandwidth probes spread by {spread(probes):.0%} (over {MOST_SPREAD:.0%}): "
            "the machine was busy, compare ratios within this run alone"
        )
    if steal_share > MOST_STEAL:
        yield (
            f"the hypervisor gave {steal_share:.1%} of the CPU time to others "
            f"(over {MOST_STEAL:.0%}): repeat the run when they are quiet"
        )
    if load_average > cpus / 2:
        yield (
            f"the load average was {load_average:.1f} on {cpus} CPUs before the run: "
            "end what else is running"
        )


def load_average() -> float:
    """Of the last minute."""
    return os.getloadavg()[0]
