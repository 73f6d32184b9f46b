"""Where the time of a step goes: each operation's bytes and time, beside what the memory allows.

The core adds up the time of each part of its steps. What is left is Python's, and that of the loops
around the kernels: it is measured on its own, with kernels that do nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from neuralchat_lite.kernels import native, runtime
from neuralchat_lite.models.decoder import Decoder


@dataclass(frozen=True)
class Operation:
    """One kind of operation in all layers of a step; `bytes` of weights, or of keys and values."""

    name: str
    bytes: int
    seconds: float

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.bytes / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Profile:
    """One decoding step, the median of several rounds.

    seconds: of a whole step, as Python sees it
    around: of a step whose kernels do nothing, all that is around them
    handover: of a parallel loop with nothing to do
    bandwidth: bytes per second, probed between the rounds
    """

    operations: tuple[Operation, ...]
    seconds: float
    around: float
    handover: float
    bandwidth: float

    @property
    def bytes(self) -> int:
        return sum(operation.bytes for operation in self.operations)

    @property
    def roofline_share(self) -> float:
        return self.bytes / self.bandwidth / self.seconds


def profile_decoding(decoder: Decoder, context: int, tokens: int, rounds: int) -> Profile:
    """Decode `tokens` tokens after `context` positions, `rounds` times."""
    program: Any = decoder.program
    cache = decoder.new_cache()
    decoder.forward(torch.randint(0, decoder.architecture.vocab_size, (context,)), cache)

    def decode() -> float:
        start = time.perf_counter()
        for _ in range(tokens):
            decoder.forward([0], cache)
        seconds = time.perf_counter() - start
        cache.truncate(context)
        return seconds / tokens

    decode()  # the first tokens still map the weights
    whole, parts, bandwidths = [], [], [native.measure_bandwidth(0.3)]
    for _ in range(rounds):
        whole.append(decode())
        program.seconds = torch.zeros(len(native.PARTS), dtype=torch.float64)
        decode()
        parts.append(program.seconds / tokens)
        program.seconds = None
        bandwidths.append(native.measure_bandwidth(0.3))
    with runtime.idle_kernels():
        around = statistics.median(decode() for _ in range(rounds))
    seconds = torch.stack(parts).median(dim=0).values.tolist()
    sizes = bytes_of_parts(decoder, context + tokens // 2)
    return Profile(
        tuple(
            Operation(name, sizes[name], part)
            for name, part in zip(native.PARTS, seconds, strict=True)
        ),
        statistics.median(whole),
        around,
        runtime.measure_handover(),
        statistics.median(bandwidths),
    )


def bytes_of_parts(decoder: Decoder, context: int) -> dict[str, int]:
    """Bytes that each part of a step for one token at position `context` reads."""
    plan = decoder.plan

    def matrices(name: str) -> int:
        return sum(getattr(layer, name).nbytes for layer in plan.layers)

    sizes: dict[str, Callable[[], int]] = {
        "embedding": lambda: plan.embedding.nbytes // plan.head.rows,
        "attention": lambda: decoder.bytes_per_token(context) - decoder.weight_bytes,
        "head": lambda: plan.head.nbytes,
    }
    return {name: sizes[name]() if name in sizes else matrices(name) for name in native.PARTS}
