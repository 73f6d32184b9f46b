"""What this machine has: the flags of its CPU and its Python interpreters."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


def this_cpu() -> frozenset[str]:
    """The feature flags of the CPU, with the names of /proc/cpuinfo. Empty if it has none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found[1].split() if found else ())


def interpreters(low: int, high: int) -> Iterator[Path]:
    """Pythons on the PATH with a minor version from low to high: our own first, then the newest."""
    newest_first = (f"python3.{minor}" for minor in range(high, low - 1, -1))
    for name in (sys.executable, *newest_first, "python3"):
        path = shutil.which(name)
        if path is not None and in_range(python_version(Path(path)), low, high):
            yield Path(path)


def in_range(version: str | None, low: int, high: int) -> bool:
    return version is not None and low <= int(version.split(".")[1]) <= high


def python_version(python: Path) -> str | None:
    """ "3.11.7", or None if it is not a Python 3 with venv and pip."""
    code = "import sys, venv, ensurepip; print('%d.%d.%d' % sys.version_info[:3])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = done.stdout.strip()
    return version if done.returncode == 0 and version.startswith("3.") else None
