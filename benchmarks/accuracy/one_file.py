"""One GGUF file in this library and in llama.cpp: how far are their distributions, and from what?

Both read the same codes, so that only arithmetic is left to differ: the precision of activations,
keys and values, and the order of sums. The reference is transformers in fp32 over the weights that
the codes mean; KL is as in `divergence`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import neuralchat_lite as ncl
from benchmarks.accuracy.divergence import kl_of
from benchmarks.accuracy.rivals import open_rival
from benchmarks.engines.table import file_variants, find_variants
from neuralchat_lite.checkpoints import open_source
from neuralchat_lite.checkpoints.write import write_checkpoint
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.files.digests import sha256_of
from neuralchat_lite.loading import tokenizer_of

REFERENCE, LLAMACPP = "transformers fp32", "llama.cpp"
PRECISIONS = ("fp32", "bf16", "int8", "auto")


@dataclass(frozen=True)
class Compared:
    """A model beside another one, over all positions.

    kl: mean KL(reference || model) in nats; largest: of one position
    same_top: the share of positions with the same likeliest token
    """

    reference: str
    model: str
    kl: float
    largest: float
    same_top: float


def compared(logits: Mapping[str, Tensor]) -> Iterator[Compared]:
    """Each model beside the reference, and each of ours beside llama.cpp.

    logits: name -> [positions, vocab]
    """
    logs = {name: rows.log_softmax(-1) for name, rows in logits.items()}
    for reference in (REFERENCE, LLAMACPP):
        for name, rows in logs.items():
            if name == reference or (name == REFERENCE and reference == LLAMACPP):
                continue
            kl = kl_of(logs[reference], rows)
            same = (logs[reference].argmax(-1) == rows.argmax(-1)).double().mean()
            yield Compared(reference, name, float(kl.mean()), float(kl.max()), float(same))


def logits_of(file: Path, text: str, tokens: int) -> dict[str, Tensor]:
    """[tokens, vocab] logits of the first tokens of a text: of the reference, llama.cpp, and this
    library in each precision of activations.

    Raises ConfigError for too short a text, EngineError when llama.cpp is not installed.
    """
    source = open_source(file)
    ids = tokenizer_of(source).encode(text)[:tokens]
    if len(ids) < tokens:
        raise ConfigError(
            f"the text has {len(ids)} tokens, expected {tokens}: give a longer one, or --tokens "
            f"{len(ids)}"
        )
    [llamacpp] = find_variants(["llamacpp:as-is"], file_variants())
    rival = open_rival(llamacpp, file, file.stem, sha256_of(file), tokens)
    try:
        found = {LLAMACPP: logits_from(rival, ids)}
    finally:
        rival.close()
    with tempfile.TemporaryDirectory(prefix="neuralchat-one-file-") as scratch:
        folder = write_checkpoint(source, Path(scratch) / "dequantized")
        exact = ncl.load(folder, engine="torch", dtype="fp32", context_length=tokens)
        found[REFERENCE] = logits_from(exact, ids)
    for precision in PRECISIONS:
        ours = ncl.load(file, compute_dtype=precision, context_length=tokens)
        found[f"neuralchat_lite {precision}"] = logits_from(ours, ids)
    return found


def logits_from(model: ncl.Model, ids: list[int]) -> Tensor:
    cache = model.decoder.new_cache(len(ids))
    return model.decoder.forward(torch.tensor(ids), cache, all_logits=True).float()
