"""Answers in asyncio, and the handles of those that nobody waits for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

import neuralchat_lite as ncl
from neuralchat_lite.generation.handle import Bell, _bells, pieces_or_ticks

from ..patience import patience

NANO = Path(__file__).parents[2] / "examples/nano/model"
PROMPTS = [f"### User:\ncalculate {n} + {n}\n### Assistant:\n" for n in (1, 20, 300)]
GREEDY: dict[str, Any] = {"max_new_tokens": 25}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ncl.Model:
    return ncl.load(NANO, "int4", cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def alone(model: ncl.Model) -> list[ncl.Reply]:
    return [model.generate(prompt, **GREEDY) for prompt in PROMPTS]


def test_a_handle_gives_its_pieces_and_its_result_as_often_as_asked(
    model: ncl.Model, alone: list[ncl.Reply]
) -> None:
    handle = model.submit(PROMPTS[0], **GREEDY)
    for _ in range(2):
        assert [piece.token_id for piece in handle] == list(alone[0].token_ids)
        assert handle.result().text == alone[0].text
    assert handle.done and not handle.cancelled


def test_several_submitted_are_computed_without_anybody_waiting(
    model: ncl.Model, alone: list[ncl.Reply]
) -> None:
    handles = [model.submit(prompt, **GREEDY) for prompt in PROMPTS]
    results = [handle.result() for handle in reversed(handles)]
    assert [one.token_ids for one in reversed(results)] == [one.token_ids for one in alone]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_outside_of_all_answers_does_not_stop_later_ones(
    model: ncl.Model, alone: list[ncl.Reply], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, failed = model.scheduler.batch, threading.Event()

    def fail() -> bool:
        failed.set()
        raise RuntimeError("of the test")

    with monkeypatch.context() as patched:
        patched.setattr(batch, "step", fail)
        first = model.submit(PROMPTS[0], **GREEDY)
        assert failed.wait(patience(10))
        ended(lambda: model.scheduler.thread is None)
    handle = model.submit(PROMPTS[1], **GREEDY)
    ended(lambda: handle.done and first.done)
    assert handle.result().token_ids == alone[1].token_ids
    assert first.result().token_ids == alone[0].token_ids


def ended(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + patience(10)
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_cancelled_one_has_no_result(model: ncl.Model) -> None:
    handle = model.submit(PROMPTS[0], max_new_tokens=5000, ignore_eos=True)
    next(iter(handle))
    handle.cancel()
    with pytest.raises(CancelledError, match="cancelled, so it has no result"):
        handle.result()
    assert handle.done and handle.cancelled
    assert 1 <= len(list(handle)) < 5000


def test_what_has_ended_it_is_raised_by_all_ways_to_wait(
    model: ncl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuralchat_lite.generation.sequence import Sequence

    def accept(self: Sequence, logits: Any, drafted: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(Sequence, "accept_drafts", accept)
    handle = model.submit(PROMPTS[0])
    for wait in (handle.result, lambda: list(handle), lambda: asyncio.run(whole(handle))):
        with pytest.raises(ZeroDivisionError):
            wait()


async def whole(handle: ncl.Handle) -> ncl.Reply:
    return await handle


def test_asyncio_gets_what_threads_get(model: ncl.Model, alone: list[ncl.Reply]) -> None:
    async def ask() -> None:
        replies = await model.agenerate(PROMPTS, **GREEDY)
        assert [one.token_ids for one in replies] == [one.token_ids for one in alone]
        assert (await model.agenerate(PROMPTS[0], **GREEDY)).text == alone[0].text
        assert (await model.submit(PROMPTS[1], **GREEDY)).text == alone[1].text
        pieces = [piece.token_id async for piece in model.astream(PROMPTS[2], **GREEDY)]
        assert tuple(pieces) == alone[2].token_ids
        found: dict[int, list[int]] = {0: [], 1: [], 2: []}
        async for index, piece in model.astream(PROMPTS, **GREEDY):
            found[index].append(piece.token_id)
        assert [tuple(ids) for ids in found.values()] == [one.token_ids for one in alone]

    asyncio.run(ask())


def test_a_task_that_is_cancelled_ends_its_answers(model: ncl.Model) -> None:
    async def ask() -> None:
        task = asyncio.create_task(model.agenerate(PROMPTS, max_new_tokens=5000, ignore_eos=True))
        while not model.scheduler.batch.running:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stream = model.astream(PROMPTS[0], max_new_tokens=5000, ignore_eos=True)
        async for _ in stream:
            break
        await stream.aclose()
        while model.scheduler.batch.running:
            await asyncio.sleep(0.001)

    asyncio.run(ask())


def test_whoever_waits_for_whole_answers_is_woken_when_they_end_alone(
    model: ncl.Model, alone: list[ncl.Reply], monkeypatch: pytest.MonkeyPatch
) -> None:
    woken = []
    ring = Bell.ring
    monkeypatch.setattr(Bell, "ring", lambda bell: (woken.append(bell), ring(bell)))

    async def all_of(whole: bool) -> list[list[int]]:
        handles = [model.submit(prompt, **GREEDY) for prompt in PROMPTS]
        found: list[list[int]] = [[] for _ in PROMPTS]
        async with aclosing(pieces_or_ticks(handles, whole=whole)) as pieces:
            async for item in pieces:
                assert item is not None
                found[item[0]].append(item[1].token_id)
        return found

    expected = [list(reply.token_ids) for reply in alone]
    assert asyncio.run(all_of(whole=True)) == expected
    assert 0 < len(woken) <= len(PROMPTS)
    woken.clear()
    assert asyncio.run(all_of(whole=False)) == expected
    assert len(woken) > len(PROMPTS)
    assert not _bells, "a loop that has ended is kept"


def test_a_clock_ticks_while_nothing_comes(model: ncl.Model) -> None:
    async def ticks() -> int:
        with model.scheduler.lock:  # nobody can run a step
            handle = model.submit(PROMPTS[0], **GREEDY)
            async with aclosing(pieces_or_ticks([handle], 0.01)) as pieces:
                return len([await anext(pieces) for _ in range(3)])

    assert asyncio.run(ticks()) == 3
