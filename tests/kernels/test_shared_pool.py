"""Several Python threads on one pool: what each computes is what it computes alone.

`make sanitize` runs these on a build that reports every unordered access.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from neuralchat_lite.checkpoints.random_weights import RandomCheckpoint
from neuralchat_lite.kernels import native
from neuralchat_lite.kernels.native import NativeKernels
from neuralchat_lite.models.build import load_decoder
from neuralchat_lite.quantization.rtn import packed_rtn

from ..conftest import TINY

ROUNDS = 12
Work = Callable[[], torch.Tensor]


@pytest.fixture(autouse=True)
def three_threads():
    before = int(native.threads().value)
    native.set_threads(3)
    yield
    native.set_threads(before)


def together(works: list[Work], beside: Callable[[], None] = lambda: None) -> None:
    """Run all at once, `beside` in a loop until they end; each must give what it gives alone."""
    wanted = [work() for work in works]
    start = threading.Barrier(len(works) + 1)
    wrong: list[object] = []

    def repeat(work: Work, want: torch.Tensor) -> None:
        start.wait()
        try:
            for _ in range(ROUNDS):
                if not torch.equal(work(), want):
                    wrong.append(work)
        except BaseException as error:
            wrong.append(error)

    threads = [
        threading.Thread(target=repeat, args=pair) for pair in zip(works, wanted, strict=True)
    ]
    for thread in threads:
        thread.start()
    start.wait()
    while any(thread.is_alive() for thread in threads):
        beside()
    for thread in threads:
        thread.join()
    assert wrong == []


def product(packed: Callable[..., object], rows: int, weight_dtype: str, compute: str) -> Work:
    kernels = NativeKernels()
    projection = kernels.projection([packed(200, 352, weight_dtype)], [None], compute)
    x = torch.randn((rows, 352), generator=torch.Generator().manual_seed(rows))

    def work() -> torch.Tensor:
        out = torch.empty((rows, 200))
        kernels.linear(x, projection, out)
        return out

    return work


def decoding(seed: int, compute: str) -> Work:
    """A decoder of its own; a prompt, then tokens one by one."""
    decoder = load_decoder(RandomCheckpoint(TINY, seed), compute_dtype=compute)

    def work() -> torch.Tensor:
        cache = decoder.new_cache()
        steps = [decoder.forward([1, 5, 9, 17, 33 + seed], cache)]
        steps += [decoder.forward([int(steps[-1].argmax())], cache) for _ in range(3)]
        return torch.stack(steps)

    return work


def quantizing(weight_dtype: str) -> Work:
    weight = torch.randn((96, 352), generator=torch.Generator().manual_seed(3))

    def work() -> torch.Tensor:
        (slab,) = packed_rtn(
            weight, weight_dtype=weight_dtype, group_size=32, scheme="sym", scale_dtype="fp16"
        )
        return slab.codes

    return work


def test_products_decoders_and_quantizers_of_several_threads_do_not_mix(isa, packed):
    together(
        [
            product(packed, 1, "int4", "bf16"),
            product(packed, 5, "int8", "int8"),
            product(packed, 2, "int4", "fp32"),
            decoding(0, "bf16"),
            decoding(1, "fp32"),
            quantizing("int4"),
        ]
    )


def test_one_decoder_serves_several_threads(isa):
    work = decoding(2, "bf16")
    together([work, work, work])


def test_the_number_of_threads_may_change_while_others_compute(packed):
    works = [product(packed, 3, "int4", "bf16"), decoding(3, "bf16")]
    counts = [1, 4, 2, 3]

    def change() -> None:
        counts.append(counts.pop(0))
        native.set_threads(counts[0])

    together(works, change)


def test_the_instruction_set_may_change_between_operations_of_others(packed):
    # Codes are the same in every set.
    sets = native.usable_isas()
    before = native.isa().value

    def change() -> None:
        sets.append(sets.pop(0))
        native.use_isa(sets[0])

    try:
        together([quantizing("int4"), quantizing("int8")], change)
    finally:
        native.use_isa(before)
