"""Lists of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import neuralchat_lite as ncl
from neuralchat_lite.generation.several import is_several

NANO = Path(__file__).parents[2] / "examples/nano/model"
TEXTS = [f"### User:\ncalculate {n} + {n}\n### Assistant:\n" for n in (1, 20, 300)]
MESSAGES = [[{"role": "user", "content": f"calculate {n} + 1"}] for n in (4, 50)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ncl.Model:
    return ncl.load(NANO, "int4", cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(
    ("prompt", "several"),
    [
        ("text", False),
        (MESSAGES[0], False),
        ([1, 2], False),
        ([], False),
        (TEXTS, True),
        (tuple(TEXTS[:1]), True),
        (MESSAGES, True),
        ([[1, 2], [3]], True),
        ([[1, 2]], True),
    ],
)
def test_what_is_a_list_of_prompts(prompt: Any, several: bool) -> None:
    assert is_several(prompt) == several


@pytest.mark.parametrize("prompts", [TEXTS, MESSAGES, [[3, 4, 5], [9]], TEXTS[:1], [*TEXTS, [7]]])
def test_answers_come_in_order_and_are_those_of_each_alone(model: ncl.Model, prompts: Any) -> None:
    alone = [model.generate(prompt, max_new_tokens=20) for prompt in prompts]
    together = ncl.generate(model, prompts, max_new_tokens=20)
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    assert [one.text for one in together] == [one.text for one in alone]


def test_pieces_come_with_the_number_of_their_prompt(model: ncl.Model) -> None:
    alone = [model.generate(text, max_new_tokens=20).token_ids for text in TEXTS]
    found: list[list[int]] = [[], [], []]
    order = []
    with ncl.stream(model, TEXTS, max_new_tokens=20) as pieces:
        for index, piece in pieces:
            order.append(index)
            found[index].append(piece.token_id)
    assert [tuple(ids) for ids in found] == alone
    assert order != sorted(order), "as they are computed, not one prompt after the other"


def test_the_prompt_that_is_wrong_is_named_before_anything_is_computed(model: ncl.Model) -> None:
    before = model.scheduler.batch.counts.steps
    with pytest.raises(ncl.PromptError, match=r"prompt 1 of 3: the prompt is an empty string"):
        model.generate([TEXTS[0], "", TEXTS[1]])
    with pytest.raises(ncl.PromptError, match="the prompt is empty"):
        model.generate([])
    assert model.scheduler.batch.counts.steps == before


def test_progress_counts_answers(model: ncl.Model) -> None:
    seen = []
    model.generate(TEXTS, max_new_tokens=5, progress=seen.append)
    assert [(step.stage, step.total) for step in seen] == [("generate", 3)] * len(seen)
    done = [step.done for step in seen]
    assert done[0] == 0 and done[-1] == 3 and done == sorted(set(done))


def test_an_error_of_one_ends_all_and_a_stream_may_be_left(
    model: ncl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuralchat_lite.generation.sequence import Sequence

    whole = Sequence.accept_drafts

    def accept(self: Sequence, logits: Any, drafted: Any) -> Any:
        if self.ids[: self.prompt_tokens] == model.tokenizer.encode(TEXTS[1]):
            raise ZeroDivisionError
        return whole(self, logits, drafted)

    monkeypatch.setattr(Sequence, "accept_drafts", accept)
    with pytest.raises(ZeroDivisionError):
        model.generate(TEXTS)
    with model.stream([TEXTS[0], TEXTS[2]], ignore_eos=True) as pieces:
        next(pieces)
    assert model.scheduler.batch.running == []
