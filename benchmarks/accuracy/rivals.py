"""Another engine as a model of this library, so that all engines are asked the same questions.

Token ids go to its worker, logits come back. The engine keeps what it can of the sequence before;
a cache here is the list of ids that it stands for.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import neuralchat_lite as ncl
from benchmarks.engines.environments import python_of
from benchmarks.engines.table import Variant
from benchmarks.engines.workers import LOAD_SECONDS, convert, start_worker
from benchmarks.models.kept import cache_root
from benchmarks.models.model import Model
from neuralchat_lite.checkpoints import open_source
from neuralchat_lite.cli.terminal import warn
from neuralchat_lite.engines.engine import FullCache, OneByOne
from neuralchat_lite.environments.process import Worker
from neuralchat_lite.families.architecture import checked_context
from neuralchat_lite.kernels import native
from neuralchat_lite.loading import tokenizer_of
from neuralchat_lite.models.decoder import check_ids

CALL_SECONDS = 600.0


class RivalCache(FullCache):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[int] = []

    def copy(self) -> RivalCache:
        twin = RivalCache()
        twin.ids, twin.length = self.ids, self.length  # the list is replaced, never changed
        return twin


class RivalDecoder(OneByOne):
    """`neuralchat_lite.engines.engine.Decoder` over a worker of the benchmarks."""

    def __init__(
        self, worker: Worker, model: Model, context_length: int, loaded: Mapping[str, Any]
    ) -> None:
        self.worker = worker
        self.model = model
        self.architecture = model.architecture
        self.context_length = context_length
        self.loaded = loaded

    def new_cache(self, capacity: int = 256) -> RivalCache:
        return RivalCache()

    def forward(
        self, ids: Sequence[int] | Tensor, cache: RivalCache, *, all_logits: bool = False
    ) -> Tensor:
        """Feed ids after what the cache holds; the fp32 logits of the last token, [vocab], or of
        each, [len(ids), vocab], with `all_logits`. Raises EngineError as `Worker.call` does."""
        ids = torch.as_tensor(ids)
        check_ids(ids, cache.length, self.context_length, self.architecture)
        sequence = [*cache.ids[: cache.length], *ids.tolist()]
        tail = len(ids) if all_logits else 1
        reply = self.worker.call("logits", timeout=CALL_SECONDS, ids=sequence, tail=tail)
        cache.ids, cache.length = sequence, len(sequence)
        rows = np.frombuffer(base64.b64decode(reply["logits"]), dtype=np.float32)
        # Some engines have a row for each of a padded vocabulary.
        logits = torch.from_numpy(rows.copy()).view(tail, -1)[:, : self.architecture.vocab_size]
        return logits if all_logits else logits[0]

    def bytes_per_token(self, context: int) -> int:
        keys = self.model.kv_bytes(context, int(self.loaded["kv_item_bytes"]))
        return int(self.loaded["weight_bytes"]) + keys


@dataclass(frozen=True)
class RivalEngine:
    """See `neuralchat_lite.engines.engine.Engine`."""

    variant: Variant
    decoder: RivalDecoder
    versions: Mapping[str, str]
    threads: int
    config: None = None

    def describe(self) -> dict[str, Any]:
        return {
            "engine": self.variant.engine,
            "weights": dict(self.variant.options),
            "versions": dict(self.versions),
            "threads": self.threads,
            **self.decoder.loaded["conditions"],
        }

    def close(self) -> None:
        self.decoder.worker.close()


def open_rival(
    variant: Variant, checkpoint: Path, name: str, sha256: str, context_length: int | None
) -> ncl.Model:
    """Convert a checkpoint to the engine's format, unless that is there, and load it.

    checkpoint: a folder, or a GGUF file
    sha256: of all that the checkpoint holds: formats are kept by it
    Raises EngineError with what the engine said.
    """
    start = time.perf_counter()
    python, threads = python_of(variant.engine), int(native.threads().value)
    model = Model.at(name, checkpoint, cache_root(), sha256)
    length = checked_context(model.architecture, context_length)

    def begin() -> Worker:
        return start_worker(variant, model, threads, python)

    if not model.is_stored(variant):
        warn(f"converting {name} for {variant.engine} ({variant.stored})")
        convert(variant, model, begin)
    worker = begin()
    try:
        versions = worker.call("versions", timeout=LOAD_SECONDS)
        loaded = worker.call(
            "load",
            timeout=LOAD_SECONDS,
            folder=str(model.stored(variant)),
            options=dict(variant.options),
            threads=threads,
        )
    except BaseException:
        worker.close()
        raise
    engine = RivalEngine(variant, RivalDecoder(worker, model, length, loaded), versions, threads)
    tokenizer = tokenizer_of(open_source(checkpoint))
    return ncl.Model(engine, tokenizer, checkpoint, None, time.perf_counter() - start)
