"""The instruction set and the thread pool of the native operations in this process.

Both are chosen at the first use, or set here; importing this module chooses nothing and starts no
thread.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from neuralchat_lite.kernels import _native
from neuralchat_lite.kernels.cpu import (
    ISA_VARIABLE,
    Choice,
    choose_isa,
    default_threads,
)

_setup_lock = threading.Lock()  # another thread may hold it while the process forks
os.register_at_fork(after_in_child=lambda: globals().update(_setup_lock=threading.Lock()))
_isa: Choice | None = None
_threads: Choice | None = None


def isa() -> Choice:
    """The instruction set in use, and why. Chooses it at the first call."""
    global _isa
    with _setup_lock:
        if _isa is None:
            choice = choose_isa(dict(_native.instruction_sets()), os.environ.get(ISA_VARIABLE))
            _native.use_instruction_set(choice.value)
            _isa = choice
        return _isa


def use_isa(name: str) -> None:
    """Switch every later operation of this process to `name`: for tests and comparisons."""
    global _isa
    choice = choose_isa(dict(_native.instruction_sets()), name, "isa")
    with _setup_lock:
        _native.use_instruction_set(choice.value)
        _isa = choice


def usable_isas() -> list[str]:
    """The instruction sets that this build has and this CPU runs, best first."""
    return [name for name, why_not in _native.instruction_sets() if not why_not]


def threads() -> Choice:
    """How many threads the operations use, and why. Chooses at the first call."""
    global _threads
    with _setup_lock:
        if _threads is None:
            count, choice = default_threads()
            _native.set_threads(count)
            _threads = choice
        return _threads


def set_threads(count: int) -> None:
    """Use `count` threads from now on, in the whole process.

    count: as `cpu.check_threads` accepts it
    """
    global _threads
    with _setup_lock:
        _native.set_threads(count)
        _threads = Choice(str(count), "asked for")


def cpu_features() -> list[str]:
    """The features of this CPU that a kernel may use, by their names in /proc/cpuinfo."""
    return list(_native.cpu_features())


def return_freed_memory() -> None:
    """Return memory to the system that was freed and that the C library keeps (glibc alone)."""
    _native.return_freed_memory()


UNQUANTIZED = "unquantized"
# (weights, activations) of every kind of product. Unquantized weights are always computed in fp32.
PRODUCTS = (
    *((weights, compute) for weights in ("int4", "int8") for compute in ("bf16", "int8", "fp32")),
    (UNQUANTIZED, "fp32"),
)


@dataclass(frozen=True)
class Product:
    """What runs a kind of product: an instruction, in the kernels of a set, and why this set."""

    instruction: str
    set: str
    why: str

    def __str__(self) -> str:
        return f"{self.instruction} of {self.set}, {self.why}"


def product(weights: str, compute: str) -> Product:
    """What multiplies weights with activations, of PRODUCTS, on the set in use."""
    chosen = isa().value
    owner, instruction = _native.instruction(stored_type(weights), compute)
    why = "the set in use" if owner == chosen else f"as {chosen} has no kernel of its own for it"
    return Product(instruction, owner, why)


def measure_peak(weights: str, compute: str, seconds: float = 0.01) -> float:
    """Operations a second of all threads in a register loop of the instruction of a product.

    It reads no memory, so no kernel is faster. A multiplication and an addition are two operations.
    """
    isa(), threads()
    return _native.measure_peak(stored_type(weights), compute, seconds)


def stored_type(weights: str) -> str:
    return "fp32" if weights == UNQUANTIZED else weights


def measure_bandwidth(seconds: float = 1.0, size: int = 1 << 29) -> float:
    """Median bandwidth of reading `size` bytes with all threads, in bytes/s.

    Reads anonymous memory on huge pages, much larger than the caches, for about `seconds`.
    """
    isa(), threads()
    start, passes = time.perf_counter(), list(_native.measure_bandwidth(size, 2))
    while time.perf_counter() - start < seconds:
        passes += _native.measure_bandwidth(size, 3)
    return statistics.median(passes)


def measure_handover(loops: int = 2000) -> float:
    """Median seconds that a parallel loop with nothing to do takes: its start on all threads, and
    its end."""
    isa(), threads()
    return statistics.median(_native.measure_handover(loops))


@contextlib.contextmanager
def idle_kernels() -> Iterator[None]:
    """Every kernel does nothing: what then takes time is all that is around them."""
    chosen = isa()
    _native.use_idle_kernels()
    try:
        yield
    finally:
        _native.use_instruction_set(chosen.value)
