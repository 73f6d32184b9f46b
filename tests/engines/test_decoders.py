"""The decoders of other engines against the native one: the reference in this process, and the
same model through a worker, in this Python."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from neuralchat_lite.engines.engine import Engine, float_precision
from neuralchat_lite.engines.reference import open_reference
from neuralchat_lite.engines.remote import RemoteEngine, open_remote
from neuralchat_lite.errors import EngineError, PromptError

from .conftest import native_fp32, request_for

IDS = [1, *range(3, 43)]


def open_in_process(folder: Path, context_length: int = 64) -> Engine:
    return open_reference(request_for(folder, dtype="fp32", context_length=context_length))


def open_worker(folder: Path, context_length: int = 64) -> RemoteEngine:
    request = request_for(folder, context_length=context_length)
    precision = float_precision("torch", request, default="fp32")
    python = Path(sys.executable)
    return open_remote("torch", "transformers", request, precision, python, {})


OPENERS = ("in process", "in a worker")


@pytest.fixture(scope="module")
def worker(windowed_model: Path) -> Iterator[RemoteEngine]:
    opened = open_worker(windowed_model)
    yield opened
    opened.close()


@pytest.fixture(scope="module", params=OPENERS)
def engine(request: pytest.FixtureRequest, windowed_model: Path) -> Engine:
    if request.param == "in a worker":
        opened: Engine = request.getfixturevalue("worker")
        return opened
    return open_in_process(windowed_model)


def close_to(want: torch.Tensor, got: torch.Tensor) -> bool:
    assert want.shape == got.shape and got.dtype == torch.float32
    return float((want - got).abs().max() / want.abs().max()) < 1e-4


def test_logits_are_the_native_ones_far_beyond_the_window(
    engine: Engine, windowed_model: Path
) -> None:
    native = native_fp32(windowed_model)
    here, there = native.new_cache(), engine.decoder.new_cache()
    for first, last in ((0, 5), (5, 6), (6, 30), (30, 31), (31, 41)):
        want = native.forward(IDS[first:last], here)
        assert close_to(want, engine.decoder.forward(IDS[first:last], there))
        assert there.length == last


def test_the_logits_of_all_tokens_are_the_native_ones(engine: Engine, windowed_model: Path) -> None:
    native = native_fp32(windowed_model)
    here, there = native.new_cache(), engine.decoder.new_cache()
    for first, last in ((0, 5), (5, 6), (6, 41)):
        want = native.forward(IDS[first:last], here, all_logits=True)
        assert close_to(want, engine.decoder.forward(IDS[first:last], there, all_logits=True))
        assert there.length == last


@pytest.mark.parametrize("keep", [1, 2, None])
def test_a_batch_gives_what_each_gives_alone(engine: Engine, keep: int | None) -> None:
    decoder = engine.decoder
    texts = [IDS[:5], torch.tensor(IDS[5:6]), IDS[6:30]]
    caches, alone = ([decoder.new_cache() for _ in texts] for _ in range(2))
    for _ in range(2):
        found = decoder.forward_batch(texts, caches, keep=keep)
        for logits, ids, cache in zip(found, texts, alone, strict=True):
            want = decoder.forward(ids, cache, all_logits=True)
            assert close_to(want[-keep:] if keep else want, logits)
        assert [cache.length for cache in caches] == [cache.length for cache in alone]


def test_a_batch_that_cannot_be_fed_leaves_every_cache_as_it_was(engine: Engine) -> None:
    decoder = engine.decoder
    caches = [decoder.new_cache(), decoder.new_cache()]
    decoder.forward([5, 6], caches[0])
    want = decoder.forward([7], caches[0].copy())
    with pytest.raises(PromptError):
        decoder.forward_batch([[9, 9], [96]], caches)
    assert [cache.length for cache in caches] == [2, 0]
    assert torch.equal(want, decoder.forward([7], caches[0]))


def test_a_copied_cache_goes_its_own_way(engine: Engine) -> None:
    decoder = engine.decoder
    cache = decoder.new_cache()
    decoder.forward(IDS[:10], cache)
    twin = cache.copy()
    said = [decoder.forward(ids, one) for ids, one in (([7], twin), ([9], cache), ([8], twin))]
    assert (cache.length, twin.length) == (11, 12)
    fresh = decoder.new_cache()
    decoder.forward(IDS[:10], fresh)
    for ids, found in zip(([9], [7], [8]), (said[1], said[0], said[2]), strict=True):
        fresh.truncate(10 if ids != [8] else 11)
        assert torch.equal(decoder.forward(ids, fresh), found)
    empty = decoder.new_cache().copy()
    decoder.forward([5], empty)
    assert empty.length == 1


def test_a_cache_that_went_back_goes_on_as_if_nothing_had_been_said(
    engine: Engine, windowed_model: Path
) -> None:
    native = native_fp32(windowed_model)
    cache = engine.decoder.new_cache()
    engine.decoder.forward(IDS[:30], cache)
    for length in (20, 3, 0):
        assert cache.can_truncate(length)
        cache.truncate(length)
        want = native.forward([*IDS[:length], 7, 8], native.new_cache())
        assert close_to(want, engine.decoder.forward([7, 8], cache))
        assert cache.length == length + 2
        cache.truncate(length)
    assert not cache.can_truncate(1)
    with pytest.raises(PromptError, match="cannot go back to 1"):
        cache.truncate(1)


def test_caches_do_not_mix(engine: Engine) -> None:
    decoder = engine.decoder
    alone = decoder.new_cache()
    decoder.forward([5, 6], alone)
    want = decoder.forward([7], alone)
    one, other = decoder.new_cache(), decoder.new_cache()
    decoder.forward([5, 6], one)
    decoder.forward([9, 9, 9], other)
    assert torch.equal(want, decoder.forward([7], one))


@pytest.mark.parametrize("ids", [[], [96], [-1], [1] * 200])
def test_ids_that_cannot_be_fed_are_refused(engine: Engine, ids: list[int]) -> None:
    cache = engine.decoder.new_cache()
    with pytest.raises(PromptError):
        engine.decoder.forward(ids, cache)
    assert cache.length == 0


def test_bytes_per_token_are_those_of_the_native_decoder(
    engine: Engine, windowed_model: Path
) -> None:
    native = native_fp32(windowed_model)
    assert engine.decoder.bytes_per_token(0) == native.bytes_per_token(0)
    assert engine.decoder.bytes_per_token(8) == native.bytes_per_token(8)


def test_the_reference_tells_the_known_story(trained_model: Path) -> None:
    (golden, *_) = json.loads((trained_model / "golden.json").read_text(encoding="utf-8"))
    feed, ids = golden["input_ids"], list(golden["input_ids"])
    decoder = open_in_process(trained_model, context_length=len(golden["greedy_ids"])).decoder
    cache = decoder.new_cache()
    while len(ids) < len(golden["greedy_ids"]):
        feed = [int(decoder.forward(feed, cache).argmax())]
        ids += feed
    assert ids == golden["greedy_ids"]


def test_an_interrupted_forward_leaves_the_cache_as_it_was(windowed_model: Path) -> None:
    reference = open_reference(request_for(windowed_model, dtype="fp32")).decoder
    cache = reference.new_cache()
    reference.forward(IDS[:10], cache)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = reference.step.model.model.layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        reference.forward([11, 12], cache)
    hook.remove()
    want = native_fp32(windowed_model)
    fresh = want.new_cache()
    want.forward(IDS[:10], fresh)
    assert close_to(want.forward([13], fresh), reference.forward([13], cache))


def test_caches_that_nobody_holds_are_freed_in_the_worker(worker: RemoteEngine) -> None:
    decoder = worker.decoder
    cache = decoder.new_cache()
    decoder.forward([1], cache)
    number = cache.number
    del cache
    gc.collect()
    other = decoder.new_cache()
    decoder.forward([1], other)
    with pytest.raises(EngineError, match=f"there is no cache {number}"):
        decoder.worker.call("forward", cache=number, length=1, ids=[1], drop=[])


def test_a_worker_that_dies_is_an_error_of_the_next_token_and_leaves_no_folder(
    windowed_model: Path,
) -> None:
    running = open_worker(windowed_model)
    cache = running.decoder.new_cache()
    running.decoder.forward([1], cache)
    os.kill(running.decoder.worker.process.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match=r"engine 'torch' died \(killed by SIGKILL"):
        running.decoder.forward([2], cache)
    folder = Path(running.folder.name)
    assert folder.is_dir()
    running.close()
    assert not folder.exists()


def test_a_model_that_the_library_refuses_is_said_in_its_words(
    windowed_model: Path, tmp_path: Path
) -> None:
    for file in windowed_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    request = request_for(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "mistral9"}))
    precision = float_precision("torch", request, default="fp32")
    with pytest.raises(EngineError, match=r"engine 'torch': ValueError: .*mistral9"):
        open_remote("torch", "transformers", request, precision, Path(sys.executable), {})


def test_the_worker_computes_with_the_threads_asked_for(worker: RemoteEngine) -> None:
    assert worker.describe()["threads"] == 1
    assert worker.describe()["versions"]["torch"] == torch.__version__
