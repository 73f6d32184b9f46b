"""Products alone, in rounds: every set of kernels, kind of product and number of rows in turn.

A product is `Kernels.linear`: it converts activations, wakes threads up and multiplies. Just before
it runs a register loop of the instruction that it is made of, which no kernel can beat, and in the
same round the bandwidth probe, which no product of few rows can beat.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from benchmarks.latency import machine
from benchmarks.rows.kinds import KernelRow
from neuralchat_lite.kernels import runtime
from neuralchat_lite.kernels.layout import PackedMatrix, packed_shapes
from neuralchat_lite.kernels.native import NativeKernels, NativeProjection

ROWS = (1, 2, 4, 8, 16, 64, 512)
KINDS = tuple(kind for kind in runtime.PRODUCTS if kind[0] != runtime.UNQUANTIZED)
UNKNOWN_CACHE = 64 << 20
CACHES = 4  # copies of the weights fill the last-level cache so many times
MOST_COPIES = 64
PEAK_SECONDS, PROBE_SECONDS = 0.02, 0.2


@dataclass(frozen=True)
class Settings:
    """What is measured.

    isas, kinds, rows: see `runtime.usable_isas`, KINDS and ROWS
    outputs, columns: of the matrix
    copies: of each matrix; None: so many that products with few rows read memory
    seconds: that a sample takes, at least
    """

    isas: Sequence[str]
    kinds: Sequence[tuple[str, str]] = KINDS
    rows: Sequence[int] = ROWS
    outputs: int = 5632
    columns: int = 2048
    group_size: int = 32
    copies: int | None = None
    rounds: int = 5
    seconds: float = 0.02


def copies_of(nbytes: int) -> int:
    """So many matrices of `nbytes` that none is in a cache when its turn comes again."""
    cache = machine.last_level_cache() or UNKNOWN_CACHE
    return min(MOST_COPIES, math.ceil(CACHES * cache / nbytes))


def random_matrix(weights: str, settings: Settings, seed: int) -> PackedMatrix:
    """Any codes and any scales: the time of a product does not depend on them."""
    rows, columns, group = settings.outputs, settings.columns, settings.group_size
    codes, scales = packed_shapes(weights, rows, columns, group)
    generator = torch.Generator().manual_seed(seed)
    return PackedMatrix(
        weights,
        rows,
        columns,
        group,
        torch.randint(0, 256, codes, dtype=torch.uint8, generator=generator),
        (0.5 + torch.rand(scales, generator=generator)).div(100).half(),
        None,
    )


class Case:
    """One kind of product with one number of rows; each call takes the next copy."""

    def __init__(self, projections: Sequence[NativeProjection], rows: int) -> None:
        self.kernels = NativeKernels()
        self.next = itertools.cycle(projections)
        self.x = torch.randn((rows, projections[0].cols))
        self.out = torch.empty((rows, projections[0].rows))

    def sample(self, seconds: float) -> float:
        """Seconds a product, of as many as take `seconds` together. The first is not timed."""
        self.kernels.linear(self.x, next(self.next), self.out)
        done, start = 0, time.perf_counter()
        while True:
            self.kernels.linear(self.x, next(self.next), self.out)
            done += 1
            passed = time.perf_counter() - start
            if passed >= seconds:
                return passed / done


def measure(settings: Settings, say: Callable[[str], None] = lambda _: None) -> list[KernelRow]:
    """Rows of all that `settings` asks for. The set of kernels in use is the same afterwards.

    say: what is told the number of each round
    """
    before = runtime.isa().value
    try:
        return measure_rounds(settings, say)
    finally:
        runtime.use_isa(before)


def measure_rounds(settings: Settings, say: Callable[[str], None]) -> list[KernelRow]:
    stored = {weights: matrices(weights, settings) for weights, _ in settings.kinds}
    cases = {
        (*kind, rows): Case(projections(stored[kind[0]], kind[1]), rows)
        for kind in settings.kinds
        for rows in settings.rows
    }
    found: dict[tuple[str, str, str, int], KernelRow] = {}
    for index in range(settings.rounds):
        say(f"round {index + 1} of {settings.rounds}")
        for isa in settings.isas:
            runtime.use_isa(isa)
            bandwidth = machine.probe_bandwidth(PROBE_SECONDS)
            for weights, compute in settings.kinds:
                for rows in settings.rows:
                    peak = runtime.measure_peak(weights, compute, PEAK_SECONDS)
                    where = (isa, weights, compute, rows)
                    if where not in found:
                        found[where] = empty_row(*where, settings, stored[weights])
                    row = found[where]
                    row["samples"].append(cases[weights, compute, rows].sample(settings.seconds))
                    row["peaks"].append(peak)
                    row["bandwidths"].append(bandwidth)
    return list(found.values())


def matrices(weights: str, settings: Settings) -> list[PackedMatrix]:
    first = random_matrix(weights, settings, 0)
    copies = settings.copies or copies_of(first.nbytes)
    return [first, *(random_matrix(weights, settings, seed) for seed in range(1, copies))]


def projections(stored: Sequence[PackedMatrix], compute: str) -> list[NativeProjection]:
    kernels = NativeKernels()
    return [kernels.projection([matrix], [None], compute) for matrix in stored]  # type: ignore[arg-type]


def empty_row(
    isa: str,
    weights: str,
    compute: str,
    rows: int,
    settings: Settings,
    stored: Sequence[PackedMatrix],
) -> KernelRow:
    product = runtime.product(weights, compute)
    return {
        "kind": "kernel",
        "isa": isa,
        "weights": weights,
        "compute": compute,
        "instruction": product.instruction,
        "instruction_set": product.set,
        "rows": rows,
        "outputs": settings.outputs,
        "columns": settings.columns,
        "group_size": settings.group_size,
        "weight_bytes": stored[0].nbytes,
        "copies": len(stored),
        "threads": int(runtime.threads().value),
        "samples": [],
        "peaks": [],
        "bandwidths": [],
    }


def operations(row: KernelRow) -> int:
    """Multiplications and additions of one product."""
    return 2 * row["rows"] * row["outputs"] * row["columns"]


def rates(row: KernelRow) -> Iterator[tuple[float, float]]:
    """(operations a second, bytes of weights a second) of each round."""
    for sample in row["samples"]:
        yield operations(row) / sample, row["weight_bytes"] / sample
