"""Whether the machine was quiet: bandwidth probes, stolen CPU time, load; and pinning to CPUs."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rows.run import read_line
from neuralchat_lite.kernels import native

MOST_SPREAD = 0.15  # of the bandwidth probes, (largest - smallest) / median
MOST_STEAL = 0.02  # share of the CPU time that the hypervisor gave to others
PROBE_SECONDS = 0.5


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


def last_level_cache() -> int | None:
    """Bytes of the largest cache that a CPU shares or has; None where the system does not say."""
    folders = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")
    found = [read_line(str(folder / "size")) or "" for folder in folders]
    sizes = [int(size[:-1]) << 10 for size in found if size.endswith("K") and size[:-1].isdigit()]
    return max(sizes, default=None)


def probe_bandwidth(seconds: float = PROBE_SECONDS) -> float:
    """Bytes a second that the machine reads now, with the threads of our kernels."""
    return native.measure_bandwidth(seconds)


def spread(values: Sequence[float]) -> float:
    """(largest - smallest) / median"""
    return (max(values) - min(values)) / statistics.median(values) if values else 0.0


def busy_warnings(
    probes: Sequence[float], steal_share: float, load_average: float, cpus: int
) -> Iterable[str]:
    """Reasons to doubt the measurements, as sentences.

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


class Watch:
    """What others take of this machine from here on; made before the first measurement."""

    def __init__(self) -> None:
        self.began, self.load_average = CpuTime.now(), load_average()

    def warnings(self, probes: Sequence[float], cpus: int) -> Iterable[str]:
        """`busy_warnings` of the run until now; probes: bytes/s"""
        steal = CpuTime.now().steal_share_since(self.began)
        return busy_warnings(probes, steal, self.load_average, cpus)


def load_average() -> float:
    """The load average of the last minute."""
    return os.getloadavg()[0]
