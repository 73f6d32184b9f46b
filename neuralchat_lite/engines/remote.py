"""A decoder in another process, a worker: it gets token ids and returns logits.

`environments/worker` runs there. Keys and values stay there. A cache here is a number and a length.
Each call sends the length, so that the worker drops what was truncated or left by an interrupted
call.
"""

from __future__ import annotations

import base64
import itertools
import tempfile
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralchat_lite.engines.engine import (
    FullCache,
    OneByOne,
    Precision,
    Request,
    cache_bytes,
    weight_bytes,
)
from neuralchat_lite.environments import worker
from neuralchat_lite.environments.environment import engine_environment
from neuralchat_lite.environments.process import Worker
from neuralchat_lite.families.architecture import Architecture
from neuralchat_lite.kernels.cpu import default_threads
from neuralchat_lite.models.decoder import check_ids
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig

WORKER = Path(worker.__file__).parent / "main.py"
# A worker that takes longer counts as hanging. Reference engines are slow: a bf16 token of a
# 7B model has been seen to take six.
LOAD_SECONDS = 3600.0
CALL_SECONDS = 600.0
SECONDS_PER_TOKEN = 10.0


class RemoteCache(FullCache):
    """The handle of a cache in the worker. The worker frees its cache when this one is freed."""

    def __init__(self, decoder: RemoteDecoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.number = next(decoder.numbers)
        weakref.finalize(self, decoder.dropped.append, self.number)

    def copy(self) -> RemoteCache:
        """Raises EngineError as `Worker.call` does."""
        twin = RemoteCache(self.decoder)
        if self.length:  # the worker does not know empty ones
            self.decoder.worker.call(
                "copy", timeout=CALL_SECONDS, source=self.number, target=twin.number
            )
        twin.length = self.length
        return twin


class RemoteDecoder(OneByOne):
    """`engine.Decoder` over a worker."""

    def __init__(
        self, worker: Worker, architecture: Architecture, precision: Precision, context_length: int
    ) -> None:
        self.worker = worker
        self.architecture = architecture
        self.context_length = context_length
        self.weight_bytes = weight_bytes(architecture, precision)
        # Quantized engines keep keys and values in fp32.
        self.cache_dtype = precision.dtype or "fp32"
        self.numbers = itertools.count(1)
        self.dropped: deque[int] = deque()  # finalizers may run in the middle of a call

    def new_cache(self, capacity: int = 256) -> RemoteCache:
        return RemoteCache(self)

    def forward(
        self, ids: Sequence[int] | Tensor, cache: RemoteCache, *, all_logits: bool = False
    ) -> Tensor:
        """Feed ids after what the cache holds. Returns the fp32 logits of the last token,
        [vocab], or of each, [len(ids), vocab], with `all_logits`.

        Raises EngineError as `Worker.call` does.
        """
        ids = torch.as_tensor(ids)
        check_ids(ids, cache.length, self.context_length, self.architecture)
        drop = [self.dropped.popleft() for _ in range(len(self.dropped))]
        reply = self.worker.call(
            "forward",
            timeout=CALL_SECONDS + SECONDS_PER_TOKEN * len(ids),
            cache=cache.number,
            length=cache.length,
            ids=ids.tolist(),
            drop=drop,
            all_logits=all_logits,
        )
        cache.length += len(ids)
        logits = np.frombuffer(base64.b64decode(reply["logits"]), dtype=np.float32)
        found = torch.from_numpy(logits.copy())
        return found.view(len(ids), -1) if all_logits else found

    def bytes_per_token(self, context: int) -> int:
        return self.weight_bytes + cache_bytes(self.architecture, context, self.cache_dtype)


@dataclass(frozen=True)
class RemoteEngine:
    """See `engine.Engine`.

    loaded: what the worker reported: versions, threads, flags
    folder: the worker's directory, deleted with the engine; ITREX writes into it
    """

    name: str
    decoder: RemoteDecoder
    precision: Precision
    loaded: Mapping[str, Any]
    python: Path
    folder: tempfile.TemporaryDirectory[str]

    @property
    def config(self) -> WeightOnlyQuantConfig | None:
        return self.precision.config

    def describe(self) -> dict[str, Any]:
        options = self.precision.options
        quantized = {} if options is None else {"weights": dict(options)}
        return {
            **quantized,
            "engine": self.name,
            "python": str(self.python),
            **self.loaded,
            "compute_dtype": options["compute_dtype"] if options else self.precision.dtype,
            "notes": dict(self.precision.notes or {}),
            "weight_bytes": self.decoder.weight_bytes,
        }

    def close(self) -> None:
        self.decoder.worker.close()
        self.folder.cleanup()


def open_remote(
    name: str,
    loader: str,
    request: Request,
    precision: Precision,
    python: Path,
    variables: Mapping[str, str | None],
) -> RemoteEngine:
    """Start a worker with the Python of an environment and load a checkpoint there.

    loader: one of worker.LOADERS
    variables: environment variables for the worker
    Raises EngineError with the message of the library there.
    """
    threads = default_threads()[0] if request.threads is None else request.threads
    folder = tempfile.TemporaryDirectory(prefix=f"neuralchat-lite-{name}-")
    worker = Worker(
        # -E and -s: without variables and user packages that are meant for other Pythons.
        [str(python), "-E", "-s", str(WORKER)],
        name=f"engine {name!r}",
        variables={
            **variables,
            "OMP_NUM_THREADS": str(threads),
            "KMP_BLOCKTIME": "1",  # Intel's OpenMP: free the cores between two tokens
            "HF_HUB_OFFLINE": "1",
        },
        folder=Path(folder.name),
    )
    try:
        loaded = worker.call(
            "load",
            timeout=LOAD_SECONDS,
            loader=loader,
            folder=str(request.folder.absolute()),
            threads=threads,
            rope=dict(request.architecture.rope),
            dtype=precision.dtype,
            quantization=None if precision.options is None else dict(precision.options),
        )
    except BaseException:
        worker.close()
        folder.cleanup()
        raise
    decoder = RemoteDecoder(worker, request.architecture, precision, request.context_length)
    return RemoteEngine(name, decoder, precision, loaded, python, folder)


def open_in_environment(name: str, request: Request, precision: Precision) -> RemoteEngine:
    """`open_remote` in the environment of that name. Raises EngineError unless it is ready."""
    environment = engine_environment(name)
    environment.require_ready()
    return open_remote(name, name, request, precision, environment.python, environment.variables())
