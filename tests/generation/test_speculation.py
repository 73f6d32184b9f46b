"""Drafts that stand leave the answer as it would be without them."""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import neuralchat_lite as ncl
from neuralchat_lite.generation.speculation import LONGEST, SHORTEST, DraftLength, NgramDrafts


def slow_draft(ids: list[int], count: int) -> list[int]:
    """The oracle: look for the longest last run from the end, and copy what came after it."""
    for length in range(LONGEST, SHORTEST - 1, -1):
        run = ids[-length:]
        for end in range(len(ids) - 1, length - 1, -1):
            if len(run) == length and ids[end - length : end] == run:
                text = list(ids)
                for place in range(end, end + count):
                    text.append(text[place])
                return text[len(ids) :]
    return []


@pytest.mark.parametrize("vocabulary", [2, 4, 30])
def test_drafts_are_what_came_after_the_longest_run_when_it_was_last_there(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    ids = torch.randint(vocabulary, (200,), generator=generator).tolist()
    drafts = NgramDrafts(ids[:50])
    for end in range(50, 200):
        assert drafts.draft(6) == slow_draft(ids[:end], 6)
        drafts.extend([ids[end]])


def test_a_text_that_repeats_is_drafted_beyond_its_end() -> None:
    assert NgramDrafts([1, 2, 3, 1, 2]).draft(7) == [3, 1, 2, 3, 1, 2, 3]
    assert NgramDrafts([7, 7, 7]).draft(3) == [7, 7, 7]
    assert NgramDrafts([1, 2, 3]).draft(3) == NgramDrafts().draft(3) == []


def test_large_ids_are_told_apart() -> None:
    largest = 2**31 - 1
    assert NgramDrafts([largest, 0, 5, 0, largest]).draft(1) == []
    assert NgramDrafts([largest, 0, 5, largest, 0]).draft(1) == [5]


def test_the_cost_of_a_token_does_not_grow_with_the_text() -> None:
    """Of a text that repeats, where a search would compare most."""

    def seconds(count: int) -> float:
        drafts = NgramDrafts([1, 2] * count)
        best = math.inf
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(200):
                drafts.extend([1, 2])
                drafts.draft(8)
            best = min(best, time.perf_counter() - start)
        return best

    assert seconds(100_000) < 20 * seconds(1_000)  # 100 where each token looks through the text


NANO = Path(__file__).parents[2] / "examples/nano/model"
ASKED = [{"role": "user", "content": "calculate 100 + 520 + 60"}]
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalised": {"repetition_penalty": 1.3, "frequency_penalty": 0.2},
    "seeded": {"temperature": 1.0, "seed": 3},
    "narrowed": {"temperature": 2.0, "top_k": 3, "presence_penalty": 0.5, "seed": 4},
    "stopped": {"stop": ["60", "zzz"]},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ncl.Model:
    return ncl.load(NANO, "int4", cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["ngram", "itself"])
def test_drafts_change_no_answer(model: ncl.Model, kind: str, by: str) -> None:
    options: dict[str, Any] = {"max_new_tokens": 90, "logprobs": True} | KINDS[kind]
    draft = model if by == "itself" else by
    prompts: list[Any] = [ASKED, "calculate 7 7 7 7 7", [5, 6, 5, 6, 5]]
    plain = model.generate(prompts, **options)
    drafted = model.generate(prompts, draft=draft, **options)
    assert [reply.token_ids for reply in drafted] == [reply.token_ids for reply in plain]
    assert [reply.text for reply in drafted] == [reply.text for reply in plain]
    assert [reply.logprobs for reply in drafted] == [reply.logprobs for reply in plain]
    assert [reply.finish_reason for reply in drafted] == [reply.finish_reason for reply in plain]
    assert all(reply.timings.drafted == 0 for reply in plain)
    assert sum(reply.timings.accepted for reply in drafted) > 0


def test_a_model_as_its_own_draft_accepts_everything_and_takes_fewer_steps(
    model: ncl.Model,
) -> None:
    counts = model.scheduler.batch.counts
    plain = model.generate([3, 4, 5], max_new_tokens=200, ignore_eos=True)
    before = counts.steps
    drafted = model.generate([3, 4, 5], max_new_tokens=200, ignore_eos=True, draft=model)
    assert drafted.token_ids == plain.token_ids
    assert drafted.timings.accepted == drafted.timings.drafted > 170
    assert counts.steps - before < 30


def test_drafts_end_where_the_context_does(model: ncl.Model) -> None:
    long = model.decoder.context_length - 30
    ids = [3 + n % 7 for n in range(long)]
    plain = model.generate(ids, max_new_tokens=100, ignore_eos=True)
    assert plain.finish_reason == "context"
    for draft in ("ngram", model):
        reply = model.generate(ids, max_new_tokens=100, ignore_eos=True, draft=draft)
        assert reply.token_ids == plain.token_ids and reply.finish_reason == "context"


def test_an_error_of_the_draft_model_ends_that_answer_alone(
    model: ncl.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = ncl.load(NANO, "int4", cache_dir=tmp_path)

    def refused(*given: Any) -> None:
        raise ncl.ResourceError("no memory")

    monkeypatch.setattr(draft.decoder, "forward", refused)
    want = model.generate(ASKED, max_new_tokens=20)
    with_draft = model.submit(ASKED, max_new_tokens=20, draft=draft)
    plain = model.submit(ASKED, max_new_tokens=20)
    assert plain.result().text == want.text
    with pytest.raises(ncl.ResourceError, match="no memory"):
        with_draft.result()
    assert model.submit(ASKED, max_new_tokens=20).result().text == want.text


def test_guesses_that_fail_get_rarer_and_those_that_stand_longer() -> None:
    length = DraftLength(15)
    asked = []
    for _ in range(200):
        asked.append(length.next())
        if asked[-1]:
            length.tell(asked[-1], 0)
    assert sum(map(bool, asked)) < 12, "one in twenty"
    while not (count := length.next()):
        pass
    for _ in range(6):
        length.tell(count, count)
        count = length.next()
    assert count == 15
    length.tell(15, 3)
    assert length.next() == 4


def test_a_draft_of_another_kind_or_vocabulary_is_refused(model: ncl.Model, tmp_path: Path) -> None:
    with pytest.raises(ncl.ConfigError, match=r"draft must be None, 'ngram', or a loaded model"):
        model.generate(ASKED, draft="trigram")
    folder = tmp_path / "other"
    shutil.copytree(NANO, folder)
    words = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = words["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(words), encoding="utf-8")
    other = ncl.load(folder, dtype="fp32")
    with pytest.raises(ncl.ConfigError, match=r"the draft .* has another vocabulary"):
        model.generate(ASKED, draft=other)
