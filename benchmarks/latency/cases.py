"""What is measured: cases of batch and context, profiles of cases, and their prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.engines.table import ENGINES


@dataclass(frozen=True)
class Case:
    """One run of `generate`: `batch` prompts of `context` tokens, `new_tokens` after each.

    rounds: the number of rounds that run it
    """

    batch: int
    context: int
    new_tokens: int
    rounds: int

    @property
    def name(self) -> str:
        return f"batch {self.batch}, context {self.context}"


@dataclass(frozen=True)
class Profile:
    """What a run consists of. `variants` are measured when none are asked for."""

    shape: str
    cases: tuple[Case, ...]
    variants: tuple[str, ...]

    @property
    def rounds(self) -> int:
        return max(case.rounds for case in self.cases)


MAIN = (
    "neuralchat_lite:int4-bf16", "neuralchat_lite:int4-int8", "neuralchat_lite:int8-bf16",
    "transformers:bf16", "ipex:bf16", "ipex:bf16-llm", "itrex:int4-int8",
    "llamacpp:Q4_0", "llamacpp:Q8_0", "openvino", "onnxruntime", "torchao:int4", "ctranslate2",
)  # fmt: skip
PROFILES = {
    "quick": Profile(
        "100m",
        (Case(1, 32, 32, 5), Case(1, 512, 16, 5), Case(4, 32, 16, 5)),
        ("neuralchat_lite:int4-bf16", "neuralchat_lite:int8-bf16", "transformers:bf16"),
    ),
    # A prompt of 2,048 tokens takes half a minute with most engines: one round of it, not five.
    # A round has a sample of the first token, and of each decoded one.
    "full": Profile(
        "1b",
        (
            Case(1, 32, 16, 5),
            Case(4, 32, 8, 5),
            Case(8, 32, 8, 3),
            Case(1, 512, 8, 3),
            Case(1, 2048, 8, 1),
        ),
        MAIN,
    ),
    "thorough": Profile(
        "1b",
        tuple(Case(batch, context, 32, 7) for context in (32, 512, 2048) for batch in (1, 4, 8)),
        tuple(ENGINES),
    ),
}


def prompts_for(case: Case, vocab_size: int, seed: int = 0) -> list[list[int]]:
    """[batch][context] random ids, the same for every engine, without the three special ones."""
    generator = np.random.default_rng([seed, case.batch, case.context])
    ids: list[list[int]] = generator.integers(3, vocab_size, (case.batch, case.context)).tolist()
    return ids


def prompts_sha256(prompts: Sequence[Sequence[int]]) -> str:
    """What names the prompts of a case in rows.

    json.dumps separates with ", " here, where `neuralchat_lite.files.digests.digest_of` has ",".
    Rows of earlier runs have this digest and are resumed and compared by it, so it must stay.
    """
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
