"""Memory that answers have freed: it goes back when nobody is being answered, and seldom."""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import neuralchat_lite as ncl
from neuralchat_lite.generation import freed_memory as module
from neuralchat_lite.generation.freed_memory import FreedMemory
from neuralchat_lite.generation.scheduler import Scheduler
from neuralchat_lite.kernels.runtime import return_freed_memory

NANO = Path(__file__).parents[2] / "examples/nano/model"
PROMPT = "### User:\ncalculate 1 + 2\n### Assistant:\n"
glibc = pytest.mark.skipif(sys.platform != "linux", reason="only glibc returns freed memory")


@pytest.fixture
def model(tmp_path: Path) -> ncl.Model:
    return ncl.load(NANO, "int4", cache_dir=tmp_path)


def litter(megabytes: int) -> list[torch.Tensor]:
    """Free memory that malloc keeps, in blocks between some that stay, which it returns."""
    blocks = [torch.ones(64 * 256) for _ in range(megabytes * 16)]  # 64 KB each
    return blocks[:: len(blocks) - 1]


@glibc
def test_freed_memory_goes_back_to_the_system(anonymous_memory: Callable[[], int]) -> None:
    return_freed_memory()
    before = anonymous_memory()
    stays = litter(40)
    kept = anonymous_memory() - before
    return_freed_memory()
    assert kept > 20_000, "the litter is none"
    assert anonymous_memory() - before < 5_000
    assert len(stays) == 2


@glibc
def test_an_answer_returns_what_was_freed_before(
    model: ncl.Model, anonymous_memory: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model.generate(PROMPT, max_new_tokens=8)
    return_freed_memory()
    monkeypatch.setattr(module, "LEAST_WORK_S", 0.0)
    model.scheduler.freed.took_s = 0.0
    before = anonymous_memory()
    stays = litter(40)
    model.generate(PROMPT, max_new_tokens=8)
    assert anonymous_memory() - before < 5_000
    assert len(stays) == 2


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When memory was returned; each time takes 1 ms."""
    made: list[float] = []
    clock = [0.0]

    def returned() -> None:
        made.append(clock[0])
        clock[0] += 0.001

    monkeypatch.setattr(module, "return_freed_memory", returned)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    return made


def test_it_takes_no_more_than_a_hundredth_of_the_work(calls: list[float]) -> None:
    freed = FreedMemory()
    for _ in range(1000):
        freed.worked_s += 0.003
        freed.give_back()
    assert 10 < len(calls) <= 3.0 / 0.1


def test_it_waits_until_nobody_is_being_answered(
    model: ncl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    running: list[int] = []
    freed = model.scheduler.freed
    monkeypatch.setattr(module, "LEAST_WORK_S", 0.0)
    monkeypatch.setattr(
        module, "return_freed_memory", lambda: running.append(len(model.scheduler.batch.running))
    )
    stream = model.stream(PROMPT, max_new_tokens=30, ignore_eos=True)
    next(stream)
    model.generate(PROMPT, max_new_tokens=3)
    assert running == [], "the stream goes on"
    stream.close()
    freed.took_s = 0.0
    model.generate(PROMPT, max_new_tokens=3)
    assert running and set(running) == {0}


@glibc
@pytest.mark.long
def test_memory_after_a_thousand_requests_is_what_it_was(
    model: ncl.Model, anonymous_memory: Callable[[], int]
) -> None:
    chance = random.Random(3)

    def visits(count: int) -> None:
        for number in range(count):
            stream = model.stream([3 + number % 40] * chance.randint(1, 90), max_new_tokens=9)
            for _, _ in zip(range(chance.randint(0, 9)), stream, strict=False):
                pass
            stream.close()
        model.scheduler.batch.store.clear()
        gc.collect()

    visits(200)
    before = anonymous_memory()
    visits(1000)
    assert anonymous_memory() - before < 5_000


def test_a_scheduler_counts_its_work(model: ncl.Model) -> None:
    scheduler: Scheduler = model.scheduler
    before = scheduler.freed.worked_s
    model.generate(PROMPT, max_new_tokens=2)
    assert scheduler.freed.worked_s > before or scheduler.freed.took_s > 0
