"""How long a test waits: the limit of a quick machine, times how much slower this one is now.

A limit catches what hangs, so it costs nothing where all goes well. It must not depend on the speed
of the CPU, nor on what else the machine does.
"""

from __future__ import annotations

import time

import torch

QUICK = 0.0175  # seconds of `work` on a core of a Sapphire Rapids that has nothing else to do
slowest = 1.0


def work() -> None:
    """What tests spend time on: the interpreter, and products of small matrices."""
    sum(i * i for i in range(150_000))
    matrix = torch.ones(128, 128)
    for _ in range(100):
        matrix = (matrix @ matrix).clamp(max=1.0)


def patience(seconds: float) -> float:
    """`seconds` on a quick machine with nothing else to do, as many as that may take here.

    Measured at each call, since the load changes; the slowest of all measurements counts.
    """
    global slowest
    start = time.perf_counter()
    work()
    slowest = max(slowest, (time.perf_counter() - start) / QUICK)
    return seconds * slowest
