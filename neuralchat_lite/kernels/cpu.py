"""The CPU of this machine: its model, instruction sets, and a good number of threads."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.values import plain, shown

ISA_VARIABLE = "NEURALCHAT_LITE_ISA"
THREADS_VARIABLE = "NEURALCHAT_LITE_THREADS"
MOST_THREADS = 1024


@dataclass(frozen=True)
class Choice:
    """A chosen value and the reason, for `doctor` and `Model.report()`."""

    value: str
    why: str


def choose_isa(
    available: Mapping[str, str], asked: str | None, origin: str = ISA_VARIABLE
) -> Choice:
    """The instruction set to use.

    available: name -> why it cannot run here ("" when it can), best first
    asked: a name to force, or None for the best. Raises ConfigError when it cannot run.
    origin: the variable or argument that gave `asked`, for messages
    """
    usable = [name for name, why_not in available.items() if not why_not]
    if asked is None:
        skipped = "; ".join(f"{name}: {why}" for name, why in available.items() if why)
        return Choice(
            usable[0], f"best of {', '.join(usable)}" + (f" ({skipped})" if skipped else "")
        )
    if asked not in usable:
        reason = available.get(asked, "not in this build")
        raise ConfigError(
            f"{origin}={asked} cannot be used ({reason}): choose one of {', '.join(usable)}"
        )
    return Choice(asked, f"forced by {origin}")


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def default_threads() -> tuple[int, Choice]:
    """The default number of threads: the physical cores that this process may use.

    A second thread on a core shares its load units and its bandwidth, so it does not make
    reading weights faster. CPU affinity and a cgroup's quota limit the count, because a thread
    that waits for a CPU delays all others.
    """
    asked = os.environ.get(THREADS_VARIABLE)
    if asked is not None:
        count = int(asked) if asked.isdecimal() else asked
        return check_threads(count, THREADS_VARIABLE), Choice(asked, f"set by {THREADS_VARIABLE}")
    allowed = sorted(os.sched_getaffinity(0))
    cores = {core_of(cpu) for cpu in allowed}
    quota = cgroup_cpus()
    count = max(1, math.floor(min(len(cores), quota)))
    why = f"{len(cores)} physical cores in the affinity mask of {len(allowed)} CPUs"
    if quota < len(cores):
        why += f", bounded by the cgroup's quota of {quota:g} CPUs"
    return count, Choice(str(count), why)


def check_threads(count: object, name: str) -> int:
    """The count, if it is in the allowed range. Raises ConfigError; `name` is for the message."""
    count = plain(count)
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST_THREADS:
        raise ConfigError(
            f"{name} must be an integer from 1 to {MOST_THREADS}, got {shown(count)}: "
            "leave it out to use the physical cores, which is usually best"
        )
    return count


def core_of(cpu: int) -> str:
    """The list of the threads of a CPU's core, which identifies the core."""
    siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return siblings.read_text(encoding="ascii").strip()
    except OSError:
        return str(cpu)


def cgroup_cpus(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> float:
    """The lowest CPU quota of our cgroup and its parents, in CPUs; inf when there is none."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    quota = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            quota = min(quota, quota_of(folder))
            if folder == root:
                break
    return quota


def quota_of(folder: Path) -> float:
    """cpu.max of version 2, or cfs_quota_us / cfs_period_us of version 1."""
    try:
        limit, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        return math.inf if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period_us = int((folder / "cpu.cfs_period_us").read_text(encoding="ascii"))
        return math.inf if quota <= 0 else quota / period_us
    except (OSError, ValueError):
        return math.inf
