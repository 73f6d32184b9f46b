"""What the attacks judge by: unmutated folders are right, and no tensor can be wrong unseen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neuralchat_lite.kernels import native

from . import bases, oracle
from .adapters import Adapters
from .checkpoints import PROMPT, Checkpoints, ask, judged, load, rounded_witness, verdict
from .quantized import Quantized

IDS = [1, 380, 7, 411, 29, 600, 3]


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = int(native.threads().value)
    yield
    native.set_threads(before)


@pytest.mark.parametrize("attack", [Checkpoints, Adapters, Quantized])
def test_answers_of_unmutated_folders_are_right(attack: Any, tmp_path: Path) -> None:
    prepared = attack()
    prepared.prepare(tmp_path)
    assert prepared.unmutated() == []


@pytest.mark.parametrize("family", bases.CONFIGS)
def test_five_percent_of_half_a_tensor_show_in_the_logits(family: str, tmp_path: Path) -> None:
    model = oracle.load_witness(bases.make_base(family, tmp_path / family))
    right = oracle.logits_of(model, IDS)
    for name, parameter in model.named_parameters():
        half = parameter.data[..., ::2]  # of the columns; norms would hide that all are scaled
        half.mul_(1.05)
        assert oracle.differing(oracle.logits_of(model, IDS), right), name
        half.div_(1.05)


def test_an_answer_from_other_weights_ids_or_text_is_wrong(tmp_path: Path) -> None:
    folder = bases.make_base("mistral", tmp_path / "mistral")
    answer = ask(load(folder, "int8", tmp_path / "cache"))

    def said(changed: Any) -> str:
        return verdict(changed, answer, folder, lambda: rounded_witness(folder, "int8")).kind

    fields = vars(answer)
    assert said(answer) == "right"
    assert said(oracle.Answer(**{**fields, "text": answer.text + "x"})) == "wrong"
    assert said(oracle.Answer(**{**fields, "prompt_ids": (1, *answer.prompt_ids)})) == "wrong"
    assert said(oracle.Answer(**{**fields, "chat_ids": (1, 2, 3)})) == "wrong"
    assert said(oracle.Answer(**{**fields, "logits": answer.logits * 1.01})) == "wrong"
    int4 = rounded_witness(folder, "int4")
    assert judged(folder, lambda: int4, answer) is not None
    assert PROMPT.count("  ") == 1  # two spaces, which a tokenizer may lose
