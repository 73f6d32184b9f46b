"""`python -m tests.attacks`: run attacks for a time or a number of cases, or repeat one case.

Prints figures, and each fault with the command that repeats it. The exit code is 1 when there was a
crash, a hang, an exception that is not the library's, or a wrong answer.
"""

from __future__ import annotations

import os

# Read when they are imported: a worker is a fork, and threads do not survive one.
os.environ["OMP_NUM_THREADS"] = os.environ["NEURALCHAT_LITE_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "critical"}

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

from .adapters import Adapters
from .checkpoints import Checkpoints
from .inputs import Inputs
from .outcome import FAULTS, FINE, LIBRARY, Attack
from .planted import Planted
from .quantized import Quantized
from .runner import LIMITS, Figures, bound_memory, fuzz, run_case

ATTACKS: dict[str, type[Attack]] = {
    attack.name: attack for attack in (Checkpoints, Adapters, Quantized, Inputs)
}
KNOWN = {**ATTACKS, Planted.name: Planted}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attacks", description=__doc__)
    parser.add_argument("attack", nargs="*", help=f"{', '.join(ATTACKS)}; all when none is given")
    parser.add_argument("--seconds", type=float, help="run for so long, all attacks in turn")
    parser.add_argument("--cases", type=int, default=200, help="of each attack (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    limit = LIMITS[LIBRARY]
    parser.add_argument("--limit", type=float, default=limit, help=f"of a hang ({limit:g} s)")
    parser.add_argument("--repeat", type=int, metavar="SEED", help="one case, in this process")
    parser.add_argument("--json", action="store_true", help="figures and faults as JSON")
    asked = parser.parse_args()
    if unknown := set(asked.attack) - set(KNOWN):
        parser.error(f"unknown attack {', '.join(unknown)}: expected {', '.join(ATTACKS)}")
    torch.set_num_threads(1)
    attacks = {name: KNOWN[name]() for name in asked.attack or ATTACKS}
    with tempfile.TemporaryDirectory(prefix="attacks-") as root:
        if asked.repeat is not None:
            return repeat(attacks, asked.repeat, Path(root))
        cases = None if asked.seconds else asked.cases
        figures = fuzz(
            attacks,
            Path(root),
            cases=cases,
            seconds=asked.seconds,
            seed=asked.seed,
            limit=asked.limit,
        )
    if asked.json:
        print(json.dumps({name: as_json(found) for name, found in figures.items()}))
    else:
        for name, found in figures.items():
            show(name, found, asked.seed)
    return int(any(found.faults for found in figures.values()))


def repeat(attacks: dict[str, Attack], seed: int, root: Path) -> int:
    bad = False
    for name, attack in attacks.items():
        attack.prepare(root / "base")
        bound_memory()
        outcome, done = run_case(attack, seed, root / "case", lambda **message: None)
        bad |= outcome.kind in FAULTS
        print(f"{name} {seed}: {outcome.kind} {outcome.what}\n  {outcome.detail}")
        print(*(f"  - {text}" for text in done), sep="\n")
    return int(bad)


def as_json(figures: Figures) -> dict[str, object]:
    return {
        "cases": figures.cases,
        "seconds": round(figures.seconds, 1),
        "kinds": dict(figures.kinds),
        "refusals": dict(figures.refusals),
        "faults": [
            {"seed": fault.seed, "done": fault.done, **vars(fault.outcome)}
            for fault in figures.faults
        ],
    }


def show(name: str, figures: Figures, seed: int) -> None:
    counts = ", ".join(f"{figures.kinds[kind]} {kind}" for kind in (*FINE, *FAULTS))
    head = f"{name}: {figures.cases} cases from number {seed} on in {figures.seconds:.0f} s"
    print(f"{head}: {counts}")
    for kind, count in figures.refusals.most_common():
        print(f"  {count:5} {kind}")
    kinds = Counter((fault.outcome.kind, fault.outcome.what) for fault in figures.faults)
    for (kind, what), count in kinds.most_common():
        print(f"  {count:5} x {kind}: {what}")
        shown = [f for f in figures.faults if (f.outcome.kind, f.outcome.what) == (kind, what)]
        for fault in shown[:3]:
            print(f"        {'; '.join(fault.done)[:300]}")
            if fault.outcome.detail:
                print(f"        {fault.outcome.detail!r}")
            print(f"        repeat: python -m tests.attacks {name} --repeat {fault.seed}")


if __name__ == "__main__":
    sys.exit(main())
