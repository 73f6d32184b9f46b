"""Folders and inputs that are broken on purpose, 200 of each attack: `make fuzz` runs for longer.

A failure names the case's number; `python -m tests.attacks ATTACK --repeat NUMBER` repeats it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .planted import PLANTED

ROOT = Path(__file__).parents[2]
ATTACKS = ("checkpoints", "adapters", "quantized", "inputs")


def run_attack(name: str, cases: int, *more: str) -> dict[str, Any]:
    # A process of its own, without threads: cases run in its forks.
    command = [sys.executable, "-m", "tests.attacks", name, "--cases", str(cases)]
    command += ["--json", *more]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode in (0, 1), done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])[name]
    assert done.returncode == bool(found["faults"])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_no_case_crashes_hangs_raises_a_foreign_exception_or_answers_wrongly(name: str) -> None:
    found = run_attack(name, 200)
    assert found["cases"] == 200
    assert found["faults"] == []
    # Else the attack would be of no use: both ends must occur.
    assert min(found["kinds"]["right"], found["kinds"]["refused"]) >= 10


def test_the_runner_tells_planted_faults_apart() -> None:
    found = run_attack("planted", len(PLANTED), "--limit", "0.5")
    kinds = {fault["seed"]: fault["kind"] for fault in found["faults"]}
    assert kinds == {
        seed: kind for seed, (_, kind) in enumerate(PLANTED) if kind not in ("right", "refused")
    }
    assert found["kinds"]["right"] == found["kinds"]["refused"] == 1
    hung = next(fault for fault in found["faults"] if fault["kind"] == "hang")
    assert hung["done"] == [f"entry {hung['seed']}"]
