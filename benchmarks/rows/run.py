"""The first row of a run: machine, versions, commit. A number means little without them."""

from __future__ import annotations

import os
import platform
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.rows.kinds import RunRow
from neuralchat_lite import installed_version
from neuralchat_lite.environments.host import this_cpu
from neuralchat_lite.kernels.cpu import cpu_model

# Of the flags of a CPU, those by which engines choose their kernels.
FLAGS = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimddp", "i8mm", "sve",
)  # fmt: skip
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
ROOT = Path(__file__).parents[2]


def describe(threads: int) -> dict[str, Any]:
    """What the machine is, and what this process may use of it."""
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


def run_row(threads: int, arguments: Mapping[str, Any], packages: Sequence[str] = ()) -> RunRow:
    """packages: whose versions matter to the run, beside those that matter to every run"""
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
    """Versions in the harness' own environment. Each engine reports those of its environment."""
    found = {"neuralchat_lite": installed_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str | None:
    """The commit of this source tree, "-dirty" appended when files differ; None without git."""
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
