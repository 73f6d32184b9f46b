"""The handle of an answer: any thread ends it, also during the prompt."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import neuralchat_lite as ncl
from neuralchat_lite.generation.stream import Stream
from neuralchat_lite.models.decoder import Decoder

from ..patience import patience


def stream_of(pieces: Callable[[Callable[[], bool]], Iterator[Any]]) -> Stream:
    return Stream(pieces)  # type: ignore[arg-type]


def in_thread(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_close_from_another_thread_ends_the_loop_of_the_one_that_waits() -> None:
    waits, may_go, ended = threading.Event(), threading.Event(), threading.Event()

    def make(cancelled: Callable[[], bool]) -> Iterator[str]:
        try:
            while not cancelled():
                waits.set()
                may_go.wait(patience(60))
                yield "piece"
        finally:
            ended.set()

    stream = stream_of(make)
    got: list[Any] = []
    reader = in_thread(lambda: got.extend(stream))
    assert waits.wait(patience(60))
    stream.close()  # a generator would raise "generator already executing"
    stream.cancel()
    may_go.set()
    reader.join(patience(60))
    assert ended.is_set() and got == ["piece"] and stream.cancelled


def test_with_closes_what_was_not_read_and_nothing_was_computed_before() -> None:
    events = []

    def make(cancelled: Callable[[], bool]) -> Iterator[int]:
        events.append("begun")
        try:
            yield from range(9)
        finally:
            events.append("ended")

    with stream_of(make) as stream:
        assert events == []
        assert next(stream) == 0  # type: ignore[comparison-overlap]
    assert events == ["begun", "ended"] and list(stream) == []
    with stream_of(make):
        pass
    assert events == ["begun", "ended"]
    unread = stream_of(make)
    next(unread)
    del unread
    gc.collect()
    assert events == ["begun", "ended"] * 2


def test_the_thread_that_computes_may_cancel_in_the_middle_of_it() -> None:
    """As a signal handler does."""
    stream = stream_of(lambda cancelled: (stream.cancel() for _ in range(3)))  # type: ignore[arg-type]
    assert list(stream) == [None]


@pytest.fixture
def blocks_of_four(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens that go through the layers together, of which a decoder now takes four."""
    fed: list[int] = []
    whole = Decoder.run_block

    def run_block(self: Decoder, ids: Any, *rest: Any) -> Any:
        fed.append(len(ids))
        return whole(self, ids, *rest)

    monkeypatch.setattr(Decoder, "run_block", run_block)
    return fed


@pytest.fixture
def model(stories: Path, tmp_path: Path, blocks_of_four: list[int]) -> ncl.Model:
    loaded = ncl.load(stories, "int4", cache_dir=tmp_path)
    loaded.decoder.prefill_block = 4  # type: ignore[attr-defined]
    return loaded


def cancel_in_block(
    monkeypatch: pytest.MonkeyPatch, stream: Callable[[], Any], fed: list[int], block: int
) -> None:
    """Cancel from another thread while a block is fed."""
    whole = Decoder.run_block

    def run_block(self: Decoder, ids: Any, *rest: Any) -> Any:
        if len(fed) == block - 1:
            in_thread(lambda: stream().cancel()).join()
        return whole(self, ids, *rest)

    monkeypatch.setattr(Decoder, "run_block", run_block)


def test_a_prompt_ends_after_the_block_in_which_it_is_cancelled(
    model: ncl.Model, blocks_of_four: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = model.stream([3] * 40, max_new_tokens=5)
    cancel_in_block(monkeypatch, lambda: stream, blocks_of_four, 3)
    assert list(stream) == []
    assert blocks_of_four == [4, 4, 4]


def test_an_answer_ends_after_the_token_in_which_it_is_cancelled(
    model: ncl.Model, blocks_of_four: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = model.stream([3] * 4, max_new_tokens=50, ignore_eos=True)
    cancel_in_block(monkeypatch, lambda: stream, blocks_of_four, 6)
    assert len(list(stream)) == 6


def test_a_conversation_goes_on_after_a_turn_that_was_cancelled_in_its_prompt(
    model: ncl.Model, blocks_of_four: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = model.conversation(max_new_tokens=4, ignore_eos=True)
    with monkeypatch.context() as patched:
        stream = conversation.stream("Once upon a time, there was a little dog")
        cancel_in_block(patched, lambda: stream, blocks_of_four, 2)
        assert list(stream) == [] and conversation.messages == []
    text = "Once upon a time, there was a cat"
    said = conversation.say(text)
    assert said.timings.cached_tokens > 0
    fresh = model.conversation(max_new_tokens=4, ignore_eos=True)
    assert said.token_ids == fresh.say(text).token_ids


def test_the_torch_engine_ends_between_two_blocks_too(
    stories: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuralchat_lite.engines.engine.PREFILL_BLOCK", 4)
    model = ncl.load(stories, engine="torch", dtype="fp32")
    decoder: Any = model.decoder
    whole, fed = decoder.step, []
    stream = model.stream([3] * 40, max_new_tokens=5)

    def step(ids: list[int], *rest: Any) -> Any:
        fed.append(len(ids))
        if len(fed) == 2:
            stream.cancel()
        return whole(ids, *rest)

    decoder.step = step
    assert list(stream) == [] and fed == [4, 4]


def test_blocks_of_the_torch_engine_give_the_same_text(
    stories: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ncl.load(stories, engine="torch", dtype="fp32")
    want = model.generate([3] * 40, max_new_tokens=8, ignore_eos=True).token_ids
    monkeypatch.setattr("neuralchat_lite.engines.engine.PREFILL_BLOCK", 16)
    assert model.generate([3] * 40, max_new_tokens=8, ignore_eos=True).token_ids == want
