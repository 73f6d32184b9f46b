"""The reference: transformers' own model in this process, in bf16 or fp32, with torch's kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from neuralchat_lite.checkpoints.their_config import their_config
from neuralchat_lite.engines.engine import (
    FullCache,
    OneByOne,
    Precision,
    Request,
    cache_bytes,
    float_precision,
    weight_bytes,
)
from neuralchat_lite.environments.worker.stepping import Positions, Stepper
from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.families.architecture import Architecture
from neuralchat_lite.models.decoder import check_ids
from neuralchat_lite.shortages import shortage

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class ReferenceCache(FullCache):
    def __init__(self) -> None:
        super().__init__()
        self.positions = Positions()

    def copy(self) -> ReferenceCache:
        return deepcopy(self)


class ReferenceDecoder(OneByOne):
    """`engine.Decoder` over a transformers model."""

    def __init__(
        self, model: Any, architecture: Architecture, precision: Precision, context_length: int
    ) -> None:
        self.step = Stepper(model)
        self.architecture = architecture
        self.compute_dtype = str(precision.dtype)
        self.context_length = context_length
        self.weight_bytes = weight_bytes(architecture, precision)

    def new_cache(self, capacity: int = 256) -> ReferenceCache:
        return ReferenceCache()

    def forward(
        self, ids: Sequence[int] | Tensor, cache: ReferenceCache, *, all_logits: bool = False
    ) -> Tensor:
        """Feed ids after what the cache holds. Returns the fp32 logits of the last token,
        [vocab], or of each, [len(ids), vocab], with `all_logits`."""
        ids = torch.as_tensor(ids)
        check_ids(ids, cache.length, self.context_length, self.architecture)
        logits = self.step(ids.tolist(), cache.positions, cache.length, all_logits)
        cache.length += len(ids)
        return logits

    def hidden_states(
        self, batch: Sequence[Sequence[int] | Tensor], caches: Sequence[ReferenceCache]
    ) -> list[Tensor]:
        """Feed several sequences, one after the other: for each what the last norm gives of each
        token, [len(ids), hidden] fp32."""
        states = []
        for ids, cache in zip(map(torch.as_tensor, batch), caches, strict=True):
            check_ids(ids, cache.length, self.context_length, self.architecture)
            states.append(self.step.states(ids.tolist(), cache.positions, cache.length))
            cache.length += len(ids)
        return states

    def bytes_per_token(self, context: int) -> int:
        return self.weight_bytes + cache_bytes(self.architecture, context, self.compute_dtype)


@dataclass(frozen=True)
class ReferenceEngine:
    """See `engine.Engine`."""

    decoder: ReferenceDecoder
    config: None = None

    def describe(self) -> dict[str, Any]:
        return {
            "engine": "torch",
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "threads": torch.get_num_threads(),
            "compute_dtype": self.decoder.compute_dtype,
            "attention": self.decoder.step.model.config._attn_implementation,
            "weight_bytes": self.decoder.weight_bytes,
        }

    def close(self) -> None:
        """Does nothing: nothing is held outside this process."""


def open_reference(request: Request) -> ReferenceEngine:
    """Load a checkpoint with transformers: bf16 unless dtype says otherwise.

    threads, when given, is set for torch in the whole process.
    """
    precision = float_precision("torch", request, default="bf16")
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    try:
        with no_progress_bar():
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                request.folder,
                config=their_config(request.folder),
                dtype=DTYPES[str(precision.dtype)],
                local_files_only=True,
                trust_remote_code=False,
            )
    except CheckpointError:
        raise
    # An error here comes from the files or the system. transformers raises any type.
    except Exception as error:
        if (refused := shortage(error)) is not None:
            raise refused from error
        raise CheckpointError(
            f"transformers cannot load {request.folder} "
            f"({type(error).__name__}: {error}): check its files"
        ) from None
    model.eval()
    return ReferenceEngine(
        ReferenceDecoder(model, request.architecture, precision, request.context_length)
    )


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Hide the progress bar of transformers."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
