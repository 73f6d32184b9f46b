"""A decoder whose logits are written down, and small real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.checkpoints.random_weights import RandomCheckpoint
from neuralchat_lite.checkpoints.tokenizer import load_tokenizer
from neuralchat_lite.engines.engine import OneByOne
from neuralchat_lite.models.build import load_decoder

LETTERS = 128  # ASCII; token 0 ends the text
VOCABULARY = 512  # of the real ones


class LetterTokenizer:
    """A token is a letter."""

    all_special_ids = (0,)
    chat_template = None
    eos_token_id = None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(chr(token) for token in ids)

    def convert_ids_to_tokens(self, token: int) -> str:
        return chr(token)

    def convert_tokens_to_ids(self, token: str) -> int | None:
        return ord(token) if len(token) == 1 else None


class TokenList:
    """A cache that only remembers which tokens it was fed."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.script_begins: int | None = None

    @property
    def length(self) -> int:
        return len(self.tokens)

    def truncate(self, length: int) -> None:
        del self.tokens[length:]


class ScriptedDecoder(OneByOne):
    """Finds the letters of its script likeliest, one after the other, after any prompt."""

    def __init__(self, script: str, context_length: int, noise: float) -> None:
        self.architecture = SimpleNamespace(
            eos_ids=(0,),
            max_positions=1000,
            stated_eos={"config.json": (0,)},
            vocab_size=LETTERS,
        )
        self.script, self.context_length, self.noise = script, context_length, noise
        self.calls = 0
        self.interrupt_at: int | None = None

    def new_cache(self, capacity: int = 256) -> TokenList:
        return TokenList()

    def forward(
        self, ids: Sequence[int], cache: TokenList, *, all_logits: bool = False
    ) -> torch.Tensor:
        assert not all_logits, "the script has no others"
        self.calls += 1
        if self.calls == self.interrupt_at:
            raise KeyboardInterrupt
        cache.tokens += ids
        assert cache.length <= self.context_length
        if cache.script_begins is None:
            cache.script_begins = cache.length
        letter = self.script[(cache.length - cache.script_begins) % len(self.script)]
        ramp = torch.linspace(0, self.noise, LETTERS)
        ramp[ord(letter)] = 5.0
        return ramp

    def bytes_per_token(self, context: int) -> int:
        return 1000 + context


@pytest.fixture
def scripted() -> Callable[..., tuple[ScriptedDecoder, LetterTokenizer]]:
    def make(script: str, context_length: int = 100, noise: float = 0.0) -> Any:
        return ScriptedDecoder(script, context_length, noise), LetterTokenizer()

    return make


@pytest.fixture
def tokenizer(stories: Path) -> Any:
    return load_tokenizer(stories)


class Counting:
    """A decoder that keeps count of the tokens it is fed."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        self.fed: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.decoder, name)

    def forward(self, ids: Sequence[int], cache: Any) -> torch.Tensor:
        self.fed.append(len(ids))
        logits: torch.Tensor = self.decoder.forward(ids, cache)
        return logits

    def forward_batch(self, batch: Any, caches: Any, *, keep: Any = 1) -> list[torch.Tensor]:
        self.fed += map(len, batch)
        logits: list[torch.Tensor] = self.decoder.forward_batch(batch, caches, keep=keep)
        return logits


@pytest.fixture
def decoder(stories: Path) -> Counting:
    checkpoint = open_checkpoint(stories)
    return Counting(load_decoder(checkpoint, compute_dtype="fp32"))


@pytest.fixture
def windowed() -> Counting:
    """A random decoder whose cache is a ring that soon forgets."""
    config = {
        "model_type": "mistral",
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "sliding_window": 8,
        "max_position_embeddings": 4096,
    }
    checkpoint = RandomCheckpoint(config, 0)
    return Counting(load_decoder(checkpoint, compute_dtype="fp32", context_length=4096))
