"""Models in pairs: ours, quantized, and transformers' own class with the dequantized weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from benchmarks.accuracy.agreement import write_dequantized
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.transformers.auto import AutoModelForCausalLM

NANO = Path(__file__).parents[2] / "examples/nano/model"
PROMPTS = (
    "Once upon a time",
    "The little dog",
    "One day, Tom and Lily went to the park to play. They saw a big",
    "calculate 100 + 520 + 60",
    "a",
    "She said: no.",
    "There was a red ball under the tree, and",
    "What is 12 + 30?",
)


@dataclass(frozen=True)
class Pair:
    """One model twice, both computing in fp32 on the same weights."""

    ours: Any
    theirs: Any
    tokenizer: Any

    def batch(self, *prompts: str) -> Any:
        """Token ids with padding on the left, and their mask."""
        return self.tokenizer(list(prompts), return_tensors="pt", padding=True)

    def ids(self, batch: Any, **options: Any) -> tuple[list[list[int]], list[list[int]]]:
        """What both generate, with the same random numbers."""
        found = []
        for model in (self.ours, self.theirs):
            torch.manual_seed(0)
            found.append(model.generate(**batch, **options).tolist())
        return found[0], found[1]


def make_pair(source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    monkeypatch.setenv("NEURALCHAT_LITE_CACHE", str(folder / "cache"))
    config = WeightOnlyQuantConfig(weight_dtype="int4", compute_dtype="fp32")
    ours = AutoModelForCausalLM.from_pretrained(source, quantization_config=config)
    write_dequantized(ours.folder, folder / "dequantized")
    plain = folder / "dequantized"
    theirs = hf.AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    tokenizer = hf.AutoTokenizer.from_pretrained(source, padding_side="left")
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Pair(ours, theirs, tokenizer)


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return make_pair(NANO, tmp_path_factory.mktemp("nano"), monkeypatch)


@pytest.fixture(scope="session")
def pair(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    find_model: Callable[[str], Path],
) -> Callable[[str], Pair]:
    """A function: a model's name to its pair, made once."""
    made: dict[str, Pair] = {}

    def find(name: str) -> Pair:
        if name == "nano":
            found: Pair = request.getfixturevalue("nano")
            return found
        if name not in made:
            source = find_model(name)
            with pytest.MonkeyPatch.context() as monkeypatch:
                made[name] = make_pair(source, tmp_path_factory.mktemp("pair"), monkeypatch)
        return made[name]

    return find


@pytest.fixture
def quantized_once(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cache for the session: what a test has quantized is mapped by the next ones."""
    base = tmp_path_factory.getbasetemp() / "auto-cache"
    monkeypatch.setenv("NEURALCHAT_LITE_CACHE", str(base))
