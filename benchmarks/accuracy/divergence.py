"""How far a model's next-token distributions are from those of the reference.

KL(reference || model) = sum over the vocabulary of p_reference * (log p_reference - log p_model)

It sees what a benchmark's right-or-wrong does not, with a few thousand tokens. The reference's
distributions are kept in a file, so that two models need not be in memory at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.accuracy.perplexity import Windows, log_probs
from neuralchat_lite.engines.engine import Decoder


@dataclass(frozen=True)
class Divergence:
    """For each scored token: KL in nats, and whether both models have the same likeliest token."""

    kl: list[float]
    same_top: list[int]


def keep_reference(decoder: Decoder, windows: Windows, path: Path) -> None:
    """Write the reference's log-probabilities, [tokens, vocab] fp32."""
    shape = (windows.tokens, decoder.architecture.vocab_size)
    kept = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    row = 0
    for rows, _ in log_probs(decoder, windows):
        kept[row : row + len(rows)] = rows.numpy()
        row += len(rows)
    assert row == windows.tokens
    kept.flush()


def divergence(decoder: Decoder, windows: Windows, reference: Path) -> Divergence:
    """Compare with what `keep_reference` wrote for the same windows."""
    kept = np.load(reference, mmap_mode="r")
    assert kept.shape == (windows.tokens, decoder.architecture.vocab_size)
    kl: list[float] = []
    same: list[int] = []
    row = 0
    for rows, _ in log_probs(decoder, windows):
        wanted = torch.from_numpy(np.array(kept[row : row + len(rows)]))
        row += len(rows)
        kl += kl_of(wanted, rows).tolist()
        same += (wanted.argmax(-1) == rows.argmax(-1)).int().tolist()
    return Divergence(kl, same)


def kl_of(reference: Tensor, model: Tensor) -> Tensor:
    """[n, vocab] log-probabilities of both -> [n], in fp64: the sum nearly cancels."""
    left, right = reference.double(), model.double()
    return (left.exp() * (left - right)).sum(-1)
