"""`python -m tests.sanitizers`: build the core with gcc's sanitizers, and run its tests on that.

Only the core is instrumented. The sanitizer's library is preloaded into Python, where it sees every
allocation, lock and thread of torch too. Before the tests, each sanitizer must find a fault that is
committed on purpose. The exit code is 1 when one does not, or when a test has a report.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from neuralchat_lite.kernels import native

ROOT = Path(__file__).parents[2]
BUILDS = ROOT / "build/sanitize"


@dataclass(frozen=True)
class Sanitizer:
    """flags: of -fsanitize. preloaded: libraries of gcc. faults: kinds that it must find, and a
    word of each report. tests: pytest's arguments, for every instruction set."""

    flags: str
    preloaded: Sequence[str]
    environment: Mapping[str, str]
    faults: Mapping[str, str]
    tests: Sequence[str]


SANITIZERS = {
    "address": Sanitizer(
        flags="address,undefined",
        # It wraps __cxa_throw, and Python alone would not have loaded that.
        preloaded=("libasan.so", "libstdc++.so"),
        # Python keeps memory until its end on purpose. Tests limit memory, so no allocation is
        # too large for the sanitizer: it returns null, as malloc does.
        environment={"ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1"},
        faults={"read": "heap-buffer-overflow", "overflow": "signed integer overflow"},
        tests=("tests/kernels", "tests/models", "-k", "not perplexity"),
    ),
    "thread": Sanitizer(
        flags="thread",
        preloaded=("libtsan.so",),
        # A fork is tested too: the child has no other thread than its own. The barriers of OpenMP
        # are no locks that the sanitizer sees, so torch computes in one thread; then nothing is
        # left to suppress.
        environment={
            "TSAN_OPTIONS": "die_after_fork=0:halt_on_error=0:exitcode=66",
            "OMP_NUM_THREADS": "1",
        },
        faults={"race": "data race"},
        tests=("tests/kernels", "-k", "pool or threads or forked"),
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sanitizers", description=__doc__)
    parser.add_argument("sanitizer", nargs="*", help=f"{', '.join(SANITIZERS)} (default: both)")
    parser.add_argument(
        "--tests", nargs=argparse.REMAINDER, help="last: arguments of pytest instead of the table's"
    )
    asked = parser.parse_args()
    if unknown := set(asked.sanitizer) - set(SANITIZERS):
        parser.error(f"unknown sanitizer {', '.join(unknown)}: expected {', '.join(SANITIZERS)}")
    failed = []
    for name in asked.sanitizer or SANITIZERS:
        sanitizer = SANITIZERS[name]
        print(f"== build with -fsanitize={sanitizer.flags}", flush=True)
        path = build(name, sanitizer)
        for kind, word in sanitizer.faults.items():
            if not finds(sanitizer, path, kind, word):
                failed.append(f"{name} does not find the fault {kind!r}")
        for isa in native.usable_isas():
            print(f"== {name} sanitizer, {isa} kernels", flush=True)
            tests = asked.tests or sanitizer.tests
            if run(sanitizer, path, tests, isa=isa).returncode:
                failed.append(f"{name} sanitizer, {isa} kernels")
    print("== clean" if not failed else f"== FAILED: {'; '.join(failed)}")
    return int(bool(failed))


def build(name: str, sanitizer: Sanitizer) -> Path:
    """Build the package into a folder of its own, again only what has changed."""
    package = BUILDS / name / "package"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--upgrade", "--target", str(package)]
    settings = {
        "build-dir": str(BUILDS / name / "cmake"),
        "cmake.build-type": "RelWithDebInfo",
        "install.strip": "false",
        "cmake.define.NEURALCHAT_LITE_SANITIZE": sanitizer.flags,
    }
    command += [f"-C{key}={value}" for key, value in settings.items()]
    subprocess.run([*command, str(ROOT)], check=True)
    (path,) = (package / "neuralchat_lite/kernels").glob("_native*.so")
    return path


def run(
    sanitizer: Sanitizer, path: Path, arguments: Sequence[str], isa: str = "", quiet: bool = False
) -> subprocess.CompletedProcess[str]:
    libraries = [library(name) for name in sanitizer.preloaded]
    environment = {**os.environ, **sanitizer.environment, "LD_PRELOAD": ":".join(libraries)}
    environment["NEURALCHAT_LITE_THREADS"] = "3"
    environment |= {"NEURALCHAT_LITE_ISA": isa} if isa else {}
    # Addresses as the sanitizer expects them, where the kernel randomizes more bits of them.
    command = ["setarch", "-R", sys.executable, "-m", "tests.sanitizers.on_build", str(path)]
    return subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        env=environment,
        text=True,
        check=False,
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
    )


def library(name: str) -> str:
    said = subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    return str(Path(said.stdout.strip()).resolve())


def finds(sanitizer: Sanitizer, path: Path, kind: str, word: str) -> bool:
    """Whether a fault on purpose is reported, and ends in a failure."""
    done = run(sanitizer, path, ["misbehave", kind], quiet=True)
    return done.returncode != 0 and word in done.stdout


if __name__ == "__main__":
    sys.exit(main())
