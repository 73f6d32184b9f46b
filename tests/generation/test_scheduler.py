"""Threads that ask for answers at the same time."""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import neuralchat_lite as ncl
from neuralchat_lite.generation.batch import Batch
from neuralchat_lite.generation.job import Errand

from ..patience import patience

NANO = Path(__file__).parents[2] / "examples/nano/model"
PROMPTS = [
    f"### User:\ncalculate {a} + {b}\n### Assistant:\n" for a, b in ((1, 2), (30, 4), (7, 7))
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ncl.Model:
    return ncl.load(NANO, "int4", cache_dir=tmp_path_factory.mktemp("cache"))


def steps(model: ncl.Model) -> int:
    return model.scheduler.batch.counts.steps


def in_threads(*works: Callable[[], Any]) -> list[Any]:
    results: list[Any] = [None] * len(works)

    def call(index: int) -> None:
        results[index] = works[index]()

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience(120))
    assert not any(thread.is_alive() for thread in threads)
    return results


def when(true: Callable[[], bool], act: Callable[[], Any]) -> None:
    """Act in a thread of its own, as soon as something is true."""

    def watch() -> None:
        while not true():
            time.sleep(0.001)
        act()

    threading.Thread(target=watch, daemon=True).start()


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Steps wait until this is set, so that all have come before the first one."""
    gate = threading.Event()
    whole = Batch.step

    def step(self: Batch) -> bool:
        assert gate.wait(600)
        return whole(self)

    monkeypatch.setattr(Batch, "step", step)
    yield gate
    gate.set()


def test_threads_that_ask_at_once_are_computed_together(
    model: ncl.Model, hold: threading.Event
) -> None:
    hold.set()
    alone = [model.generate(prompt, max_new_tokens=40) for prompt in PROMPTS]
    hold.clear()
    before = steps(model)
    batch = model.scheduler.batch
    when(lambda: len(batch.arrivals) + len(batch.waiting) == len(PROMPTS), hold.set)
    works = [lambda p=prompt: model.generate(p, max_new_tokens=40) for prompt in PROMPTS]
    replies = in_threads(*works)
    assert [one.token_ids for one in replies] == [one.token_ids for one in alone]
    most = max(len(one.token_ids) for one in alone)
    assert most <= steps(model) - before < sum(len(one.token_ids) for one in alone)


def test_streams_of_threads_give_what_each_gives_alone(model: ncl.Model) -> None:
    options: dict[str, Any] = {"max_new_tokens": 30, "temperature": 1.0, "seed": 5}
    alone = [model.generate(prompt, **options).token_ids for prompt in PROMPTS]

    def read(prompt: str) -> tuple[int, ...]:
        return tuple(piece.token_id for piece in model.stream(prompt, **options))

    found = in_threads(*[lambda p=prompt: read(p) for prompt in PROMPTS * 3])
    assert found == alone * 3


def test_a_reader_that_stops_reading_holds_up_nobody(model: ncl.Model) -> None:
    slow = model.stream([5] * 70, max_new_tokens=10_000, ignore_eos=True)
    next(slow)
    reply = model.generate(PROMPTS[0], max_new_tokens=60, ignore_eos=True)
    assert reply.finish_reason == "length"
    job = model.scheduler.batch.running[0]
    assert len(job.pieces) <= 8, "nor does it run on for ever"
    next(slow)
    slow.close()
    assert model.scheduler.batch.running == []


def test_what_ends_one_is_raised_where_it_was_asked_for(
    model: ncl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, sound = (model.stream(prompt, max_new_tokens=20) for prompt in PROMPTS[:2])
    next(broken), next(sound)
    for job in model.scheduler.batch.running:
        if job.sequence.ids[: job.sequence.prompt_tokens] == model.tokenizer.encode(PROMPTS[0]):
            monkeypatch.setattr(job.sequence, "choose", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        list(broken)
    assert len(list(sound)) > 1


def test_a_thousand_requests_with_random_cancellations_leave_nothing(model: ncl.Model) -> None:
    pool: Any = model.scheduler.batch.pool
    chance = random.Random(7)
    model.generate(PROMPTS, max_new_tokens=3)
    model.scheduler.batch.store.clear()
    gc.collect()
    before, threads = pool.count, threading.active_count()

    def visit(number: int) -> None:
        stream = model.stream([3 + number % 40] * chance.randint(1, 90), max_new_tokens=9)
        for _, _ in zip(range(chance.randint(0, 9)), stream, strict=False):
            pass
        stream.close()

    def visits(first: int) -> None:
        for number in range(first, 1000, 4):
            if number % 3:
                visit(number)
            else:
                handle = model.submit([3 + number % 40] * 20, max_new_tokens=9)
                if number % 2:
                    handle.cancel()
                else:
                    handle.result()

    in_threads(*[lambda i=i: visits(i) for i in range(4)])
    deadline = time.monotonic() + patience(30)
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads
    assert model.scheduler.batch.running == model.scheduler.batch.waiting == []
    model.scheduler.batch.store.clear()
    gc.collect()
    assert pool.count == before


def test_the_thread_of_submitted_ones_ends_with_them_and_so_does_the_model(tmp_path: Path) -> None:
    model = ncl.load(NANO, "int4", cache_dir=tmp_path)
    before = threading.active_count()
    handle = model.submit(PROMPTS[0], max_new_tokens=5)
    while not handle.done:
        time.sleep(0.001)
    deadline = time.monotonic() + patience(30)
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert threading.active_count() == before
    seen = weakref.ref(model.scheduler)
    del model, handle
    gc.collect()
    assert seen() is None


def test_the_child_of_a_fork_goes_on_with_its_own_stream_alone(model: ncl.Model) -> None:
    want = model.generate(PROMPTS[0], max_new_tokens=20).token_ids
    mine = model.stream(PROMPTS[0], max_new_tokens=20)
    other = model.stream(PROMPTS[1], max_new_tokens=20)
    first = next(mine).token_id
    next(other)
    scheduler = model.scheduler
    scheduler.driver = object()  # as if another thread were in the middle of a step
    scheduler.batch.errands.append(Errand(lambda: os._exit(3)))  # and a third one waited
    child = os.fork()
    if child == 0:
        try:
            rest = [piece.token_id for piece in mine]
            alone = len(scheduler.batch.running) == 0
            os._exit(0 if (first, *rest) == want and alone else 1)
        finally:
            os._exit(2)
    scheduler.driver = None
    scheduler.batch.errands.clear()
    assert os.waitpid(child, 0)[1] == 0
    assert (first, *(piece.token_id for piece in mine)) == want


def test_ctrl_c_of_a_waiting_thread_leaves_the_others_alone(
    model: ncl.Model, hold: threading.Event
) -> None:
    """The main thread waits for another one's steps, and is interrupted."""
    results: list[Any] = []
    other = threading.Thread(
        target=lambda: results.append(model.generate(PROMPTS[0], max_new_tokens=10))
    )
    other.start()
    while model.scheduler.driver is None:
        time.sleep(0.001)
    main = threading.get_ident()
    interrupt = partial(signal.pthread_kill, main, signal.SIGINT)
    when(lambda: bool(model.scheduler.blocked), interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.generate(PROMPTS[1], max_new_tokens=10)
    hold.set()
    other.join(patience(60))
    assert (
        results and results[0].token_ids == model.generate(PROMPTS[0], max_new_tokens=10).token_ids
    )
