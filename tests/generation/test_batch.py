"""Steps over several sequences: whatever company, each gives what it gives alone."""

from __future__ import annotations

import math
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.checkpoints.random_weights import RandomCheckpoint
from neuralchat_lite.checkpoints.tokenizer import load_tokenizer
from neuralchat_lite.errors import CheckpointError, ConfigError, ResourceError
from neuralchat_lite.generation.batch import Batch, Limits, limits_of
from neuralchat_lite.generation.job import Job
from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.generation.prompt import Prompt
from neuralchat_lite.generation.sequence import Sequence
from neuralchat_lite.generation.several import generate
from neuralchat_lite.kernels.kv_format import PAGE
from neuralchat_lite.models.build import load_decoder

Options = GenerationOptions
NANO = Path(__file__).parents[2] / "examples/nano/model"
TOKENIZER: Any = load_tokenizer(NANO)
NANO_DECODER = load_decoder(open_checkpoint(NANO), compute_dtype="bf16")
SHARED = TOKENIZER.encode("calculate " + " + ".join(map(str, range(60))))  # of three pages
WINDOWED = load_decoder(
    RandomCheckpoint(
        {
            "model_type": "mistral",
            "vocab_size": NANO_DECODER.architecture.vocab_size,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "sliding_window": 70,
            "max_position_embeddings": 4096,
        },
        0,
    ),
    compute_dtype="fp32",
    context_length=4096,
)
DECODERS = {"nano": NANO_DECODER, "windowed": WINDOWED}


def sequence(decoder: Any, ids: Many[int], options: Options) -> Sequence:
    return Sequence(decoder, TOKENIZER, Prompt(tuple(ids)), options)


def outcome(job: Job) -> tuple[Any, ...]:
    pieces = list(job.pieces)
    return [piece.token_id for piece in pieces], "".join(piece.text for piece in pieces)


@dataclass(frozen=True, eq=False)
class Visit:
    """A request: when it comes, after how many pieces it is cancelled, and what it asks for."""

    step: int
    ids: tuple[int, ...]
    options: Options
    pieces: int | None


prompts = st.one_of(
    st.lists(st.integers(3, 60), min_size=1, max_size=150).map(tuple),
    st.integers(1, len(SHARED)).map(lambda count: tuple(SHARED[:count])),
)
choices = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"temperature": st.sampled_from([0.5, 1.5]), "seed": st.integers(0, 99)}),
    st.just({"repetition_penalty": 1.3}),
    st.just({"stop": ["4", "##"]}),
    st.just({"frequency_penalty": 0.5, "draft": "ngram"}),
    st.just({"temperature": 0.7, "seed": 3, "draft": "ngram"}),
)
visits = st.builds(
    lambda step, ids, count, choice, pieces: Visit(
        step, ids, Options(max_new_tokens=count, ignore_eos=True, **choice), pieces
    ),
    st.integers(0, 12),
    prompts,
    st.integers(1, 80),
    choices,
    st.one_of(st.none(), st.integers(0, 20)),
)


def page_bytes(decoder: Any) -> int:
    cache = decoder.new_cache()
    return int(cache.bytes_for(1))


def check_schedule(name: str, asked: list[Visit], step_tokens: int, pages: int) -> None:
    decoder = DECODERS[name]
    batch = Batch(decoder, Limits(step_tokens, 5, pages * page_bytes(decoder)))
    before = decoder.pool.count
    jobs = {visit: Job(sequence(decoder, visit.ids, visit.options)) for visit in asked}
    coming = sorted(jobs, key=lambda visit: visit.step)
    steps = 0
    while coming or batch.running or batch.waiting or batch.arrivals:
        while coming and coming[0].step <= steps:
            batch.arrivals.append(jobs[coming.pop(0)])
        batch.step()
        steps += 1
        assert decoder.pool.nbytes <= max(batch.kv_bytes, 0) + before * page_bytes(decoder)
        for visit, job in jobs.items():
            if visit.pieces is not None and len(job.pieces) >= visit.pieces:
                job.unwanted = True
        assert steps < 5000
    for visit, job in jobs.items():
        assert job.left and job.error is None
        alone = generate(sequence(decoder, visit.ids, replace(visit.options, draft=None)))
        tokens, text = outcome(job)
        assert tuple(tokens) == alone.token_ids[: len(tokens)]
        if visit.pieces is None:
            assert (tuple(tokens), text) == (alone.token_ids, alone.text)
    batch.store.clear()
    jobs.clear()
    del job
    assert decoder.pool.count == before, "no page is lost"


schedules = given(
    name=st.sampled_from(sorted(DECODERS)),
    asked=st.lists(visits, min_size=1, max_size=8),
    step_tokens=st.integers(1, 300),
    pages=st.integers(5, 14),
)


@settings(max_examples=25, deadline=None)
@schedules
def test_sequences_that_join_leave_and_give_way_give_what_each_gives_alone(
    name: str, asked: list[Visit], step_tokens: int, pages: int
) -> None:
    check_schedule(name, asked, step_tokens, pages)


@pytest.mark.long
@settings(max_examples=500, deadline=None)
@schedules
def test_five_hundred_schedules(
    name: str, asked: list[Visit], step_tokens: int, pages: int
) -> None:
    check_schedule(name, asked, step_tokens, pages)


def run(batch: Batch, *jobs: Job) -> list[int]:
    """Run to the end; the tokens that each step fed."""
    batch.arrivals.extend(jobs)
    fed: list[int] = []
    whole = batch.decoder.forward_batch

    def counted(ids: Any, *rest: Any, **options: Any) -> Any:
        fed.append(sum(map(len, ids)))
        return whole(ids, *rest, **options)

    batch.decoder.forward_batch = counted  # type: ignore[method-assign]
    try:
        while batch.step():
            pass
    finally:
        del batch.decoder.forward_batch
    return fed


def job(count: int, new: int, first: int = 3, **options: Any) -> Job:
    ids = [first + i % 50 for i in range(count)]
    options = {"max_new_tokens": new, "ignore_eos": True} | options
    return Job(sequence(NANO_DECODER, ids, Options(**options)))


def test_a_step_feeds_each_running_sequence_and_of_prompts_what_fits() -> None:
    batch = Batch(NANO_DECODER, Limits(step_tokens=10))
    assert run(batch, job(4, 3), job(15, 2)) == [10, 10, 2]
    #   4 + 6 of 15;  1 + 9 of 9;  1 + 1


def test_who_arrives_later_waits_for_older_prompts_not_for_older_answers() -> None:
    batch = Batch(NANO_DECODER, Limits(step_tokens=10))
    old, young = job(20, 30), job(3, 1, first=9)
    batch.arrivals.extend([old, young])
    steps = 0
    while not young.left:
        batch.step()
        steps += 1
    assert steps == 3 and len(old.pieces) == 1


def test_the_youngest_gives_way_and_is_computed_again() -> None:
    page = page_bytes(NANO_DECODER)
    batch = Batch(NANO_DECODER, Limits(kv_bytes=4 * page))
    old, young = job(PAGE, 100), job(PAGE, 100, first=7)
    run(batch, old, young)
    assert batch.counts.preemptions > 0
    assert old.error is young.error is None
    assert len(old.pieces) == len(young.pieces) == 100


def test_who_fits_in_no_way_is_told_and_the_others_go_on() -> None:
    page = page_bytes(NANO_DECODER)
    batch = Batch(NANO_DECODER, Limits(kv_bytes=2 * page))
    large, small = job(3 * PAGE, 2), job(5, 2)
    run(batch, large, small)
    assert isinstance(large.error, ResourceError)
    assert "give more kv_memory" in str(large.error)
    assert len(small.pieces) == 2 and small.error is None


def test_an_error_of_one_ends_that_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch(NANO_DECODER, Limits())
    broken, sound = job(4, 5), job(4, 5, first=8)
    monkeypatch.setattr(
        broken.sequence, "choose", lambda logits, ids: math.log(-1) if len(ids) > 6 else 5
    )
    run(batch, broken, sound)
    assert isinstance(broken.error, ValueError) and len(broken.pieces) == 3
    assert sound.error is None and len(sound.pieces) == 5


def test_memory_that_the_system_refuses_costs_what_is_remembered_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = Batch(NANO_DECODER, Limits())
    run(batch, job(2 * PAGE, 1))
    assert len(batch.store) == 2
    whole, refused = type(NANO_DECODER).forward_batch, [3]

    def forward_batch(*arguments: Any, **options: Any) -> Any:
        if refused[0]:
            refused[0] -= 1
            raise ResourceError("no memory")
        return whole(*arguments, **options)

    monkeypatch.setattr(type(NANO_DECODER), "forward_batch", forward_batch)
    old, young = job(3, 2), job(3, 2, first=9)
    run(batch, old, young)
    assert batch.counts.preemptions == 1
    assert len(old.pieces) == len(young.pieces) == 2
    refused[0] = 10
    alone = job(3, 2)
    run(batch, alone)
    assert isinstance(alone.error, ResourceError)


def test_an_interrupt_of_whoever_runs_steps_costs_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = Batch(NANO_DECODER, Limits())
    jobs = [job(5, 6), job(9, 6, first=11)]
    whole, calls = type(NANO_DECODER).forward_batch, []

    def forward_batch(*arguments: Any, **options: Any) -> Any:
        found = whole(*arguments, **options)
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(type(NANO_DECODER), "forward_batch", forward_batch)
    with pytest.raises(KeyboardInterrupt):
        run(batch, *jobs)
    run(batch)
    for one in jobs:
        again = generate(
            sequence(
                NANO_DECODER, one.sequence.ids[: one.sequence.prompt_tokens], one.sequence.options
            )
        )
        assert tuple(outcome(one)[0]) == again.token_ids


def test_a_prompt_begins_behind_the_pages_that_are_known() -> None:
    batch = Batch(NANO_DECODER, Limits())
    assert run(batch, job(3 * PAGE + 5, 1)) == [3 * PAGE + 5]
    assert run(batch, job(3 * PAGE + 5, 1)) == [5]
    assert run(batch, job(3 * PAGE, 1)) == [PAGE]  # the last token gives the logits
    assert batch.counts.cached_tokens == 5 * PAGE


def test_prompts_that_come_together_compute_what_they_share_once() -> None:
    batch = Batch(NANO_DECODER, Limits(step_tokens=1000))
    jobs = [job(2 * PAGE + 3, 2) for _ in range(4)]
    fed = run(batch, *jobs)
    assert fed[0] == 2 * PAGE + 3 and sum(fed) < 3 * PAGE
    assert len({tuple(outcome(one)[0]) for one in jobs}) == 1


def test_what_a_window_has_left_behind_is_computed_again() -> None:
    batch = Batch(WINDOWED, Limits(step_tokens=32))
    options = Options(max_new_tokens=3, ignore_eos=True)
    ids = [3 + i % 40 for i in range(5 * PAGE)]
    first, second, shorter = (
        Job(sequence(WINDOWED, some, options)) for some in (ids, ids, ids[: 2 * PAGE])
    )
    run(batch, first)
    assert sum(run(batch, second)) < 2 * PAGE
    assert outcome(first) == outcome(second)
    run(batch, shorter)
    alone = generate(sequence(WINDOWED, ids[: 2 * PAGE], options))
    assert tuple(outcome(shorter)[0]) == alone.token_ids


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "1GB"])
def test_a_kv_memory_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"kv_memory must be a positive number of bytes, got"):
        limits_of(value, "native")
    with pytest.raises(ConfigError, match=r"kv_memory=.* is for engine 'native', not 'torch'"):
        limits_of(value, "torch")
    assert limits_of(torch.tensor(5), "native") == Limits(kv_bytes=5)


def of_three(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, spoil: Any, **options: Any
) -> tuple[Job, Job, Job]:
    """Three that are computed together; `spoil` changes the logits of the second."""
    jobs = job(4, 5), job(5, 5, first=8, **options), job(70, 5, first=20)
    spoilt, whole = jobs[1].sequence, type(NANO_DECODER).forward_batch

    def forward_batch(self: Any, ids: Any, caches: Any, **more: Any) -> Any:
        found = whole(self, ids, caches, **more)
        return [
            spoil(rows) if cache is spoilt.cache and len(spoilt.ids) > 6 else rows
            for cache, rows in zip(caches, found, strict=True)
        ]

    monkeypatch.setattr(type(NANO_DECODER), "forward_batch", forward_batch)
    run(batch, *jobs)
    return jobs


def check_the_others(jobs: tuple[Job, Job, Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for sound in (jobs[0], jobs[2]):
        ids = sound.sequence.ids[: sound.sequence.prompt_tokens]
        alone = generate(sequence(NANO_DECODER, ids, sound.sequence.options))
        assert sound.error is None and tuple(outcome(sound)[0]) == alone.token_ids


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logits_of_one_that_are_not_finite_end_that_one_alone(
    bad: float, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, before = Batch(NANO_DECODER, Limits()), NANO_DECODER.pool.count
    jobs = of_three(
        batch, monkeypatch, lambda rows: torch.full_like(rows, bad), temperature=temperature
    )
    assert isinstance(jobs[1].error, CheckpointError) and len(jobs[1].pieces) == 2
    check_the_others(jobs, monkeypatch)
    assert not batch.running and not batch.waiting
    batch.store.clear()
    assert NANO_DECODER.pool.count == before


@pytest.mark.parametrize("error", [ValueError, StopIteration, MemoryError, ResourceError])
def test_a_processor_that_raises_ends_its_answer_alone(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] > 6:
            raise error("of the user")
        return scores

    batch = Batch(NANO_DECODER, Limits())
    jobs = of_three(batch, monkeypatch, lambda rows: rows, logits_processors=[raising])
    assert type(jobs[1].error) is error and str(jobs[1].error) == "of the user"
    assert len(jobs[1].pieces) == 2
    check_the_others(jobs, monkeypatch)


def test_who_is_cancelled_while_waiting_is_never_fed() -> None:
    batch, before = Batch(NANO_DECODER, Limits(running=1)), NANO_DECODER.pool.count
    first, second, third = job(4, 20), job(5, 3, first=8), job(6, 3, first=9)
    batch.arrivals.extend([first, second, third])
    batch.step()
    assert batch.waiting == [second, third]
    second.unwanted = True
    batch.step()
    assert second.left and second.error is None and batch.waiting == [third]
    run(batch)
    assert not second.pieces and second.sequence.cache.length == 0
    assert (len(first.pieces), len(third.pieces)) == (20, 3)
    batch.store.clear()
    assert NANO_DECODER.pool.count == before


@pytest.mark.parametrize("kv_bytes", [1, 100])
def test_with_kv_memory_for_no_page_each_is_told(kv_bytes: int) -> None:
    batch = Batch(NANO_DECODER, Limits(kv_bytes=kv_bytes))
    jobs = job(1, 2), job(PAGE + 1, 2, first=9)
    run(batch, *jobs)
    for each in jobs:
        assert isinstance(each.error, ResourceError) and not each.pieces
        assert "give more kv_memory" in str(each.error)


def test_a_prompt_larger_than_kv_memory_takes_nobody_elses_pages() -> None:
    """It begins, since chunks of it fit, and gives up alone; who runs beside it stays."""
    page = page_bytes(NANO_DECODER)
    batch = Batch(NANO_DECODER, Limits(step_tokens=PAGE, kv_bytes=3 * page))
    small, large = job(5, 60), job(6 * PAGE, 2, first=9)
    run(batch, small, large)
    assert small.error is None and len(small.pieces) == 60
    assert isinstance(large.error, ResourceError)
