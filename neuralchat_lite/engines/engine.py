"""Protocols of engines, decoders and caches, and what an engine is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from neuralchat_lite.errors import ConfigError, PromptError
from neuralchat_lite.families.architecture import Architecture
from neuralchat_lite.kernels.kv_format import KV_FORMATS
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig, float_name

FLOAT_BITS = {"bf16": 16, "fp32": 32}
WEIGHT_BITS = {"int4": 4, "int4_fullrange": 4, "int8": 8}


# What to check when logits are not finite, of an engine that cannot say it more closely.
WHEN_NOT_FINITE = "download the checkpoint again, or load it with dtype='fp32' or engine='native'"


class Cache(Protocol):
    """Keys and values of one sequence. See `models.kv_cache.KVCache`."""

    @property
    def length(self) -> int: ...

    def can_truncate(self, length: int) -> bool: ...

    def truncate(self, length: int) -> None: ...

    def copy(self) -> Any:
        """Another sequence that holds the same so far."""
        ...


class Decoder(Protocol):
    """A model that turns token ids into logits. See `models.decoder.Decoder`.

    Its caches are its own: one that `new_cache` made is only given back to the same decoder. One
    that knows what to check when its logits are not finite says it in `when_not_finite`.
    """

    architecture: Architecture
    context_length: int

    def new_cache(self, capacity: int = 256) -> Any: ...

    def forward(
        self, ids: Sequence[int] | Tensor, cache: Any, *, all_logits: bool = False
    ) -> Tensor:
        """Feed ids after what the cache holds.

        Returns the fp32 logits of the last token, [vocab], or of each, [len(ids), vocab], with
        `all_logits`. Raises PromptError for ids that cannot be fed.
        """
        ...

    def forward_batch(
        self,
        batch: Sequence[Sequence[int] | Tensor],
        caches: Sequence[Any],
        *,
        keep: int | None = 1,
    ) -> list[Tensor]:
        """Feed several sequences, each with a cache of its own.

        Returns for each the fp32 logits of its last `keep` tokens, or of all when None:
        [min(keep, len(ids)), vocab]. Raises PromptError as `forward` does; the caches are then
        all as before.
        """
        ...

    def bytes_per_token(self, context: int) -> int:
        """Bytes of weights, keys and values that decoding one token at position `context` reads."""
        ...


class OneByOne:
    """`Decoder.forward_batch` of an engine that computes one sequence after the other."""

    def forward_batch(
        self: Decoder,
        batch: Sequence[Sequence[int] | Tensor],
        caches: Sequence[Any],
        *,
        keep: int | None = 1,
    ) -> list[Tensor]:
        """See `Decoder.forward_batch`."""
        assert len(batch) == len(caches) == len(set(map(id, caches)))
        before = [cache.length for cache in caches]
        try:
            return [
                last_logits(self, ids, cache, keep)
                for ids, cache in zip(batch, caches, strict=True)
            ]
        except BaseException:
            for cache, length in zip(caches, before, strict=True):
                cache.truncate(length)
            raise


def last_logits(
    decoder: Decoder, ids: Sequence[int] | Tensor, cache: Any, keep: int | None
) -> Tensor:
    if keep == 1:
        return decoder.forward(ids, cache)[None]
    # Logits that nobody asked for are not computed: each is a whole vocabulary.
    begin = 0 if keep is None else max(0, len(ids) - keep)
    if begin:
        decoder.forward(ids[:begin], cache)
    return decoder.forward(ids[begin:], cache, all_logits=True)


class Engine(Protocol):
    """Something that runs a whole model."""

    @property
    def decoder(self) -> Decoder: ...

    @property
    def config(self) -> WeightOnlyQuantConfig | None:
        """How the weights are quantized; None when they are the checkpoint's."""
        ...

    def describe(self) -> dict[str, Any]:
        """What runs, and why: its part of `Model.report()`."""
        ...

    def close(self) -> None:
        """Free what it holds outside this process; it answers no more."""
        ...


class FullCache:
    """A cache that keeps every position, of windowed layers too (the windows are in the masks),
    and so can go back to any length. Engines add what they keep, and `copy`."""

    def __init__(self) -> None:
        self.length = 0

    def can_truncate(self, length: int) -> bool:
        return 0 <= length <= self.length

    def truncate(self, length: int) -> None:
        if not self.can_truncate(length):
            raise PromptError(
                f"a cache of {self.length} positions cannot go back to {length}: "
                f"give a length from 0 to {self.length}"
            )
        self.length = length


@dataclass(frozen=True)
class Request:
    """What `open_engine` is asked for.

    folder: of the checkpoint
    architecture: as its config.json describes it
    asked: options of WeightOnlyQuantConfig that were given; None when none was
    dtype: of the checkpoint's own weights, unquantized; None when none was given
    context_length: positions to allow
    threads: None for the engine's own choice
    """

    folder: Path
    architecture: Architecture
    asked: Mapping[str, Any] | None
    dtype: Any
    context_length: int
    threads: int | None


@dataclass(frozen=True)
class Precision:
    """What an engine computes in: a float type, or a quantization that it has.

    config: as it was asked for, None for a float type
    options: of that configuration, what the engine does
    notes: option -> why it is not what the configuration's default says
    """

    dtype: str | None = None
    config: WeightOnlyQuantConfig | None = None
    options: Mapping[str, Any] | None = None
    notes: Mapping[str, str] | None = None


def float_precision(engine: str, request: Request, default: str) -> Precision:
    """The float type asked for, of an engine that does not quantize. Raises ConfigError."""
    if request.asked is not None:
        raise ConfigError(
            f"engine {engine!r} runs the checkpoint's own weights, not quantized ones with "
            f"{', '.join(request.asked)}: give dtype='bf16' or 'fp32', or use engine='native'"
        )
    return Precision(float_name(default if request.dtype is None else request.dtype))


def quantized_precision(
    engine: str, asked: Mapping[str, Any], honoured: Mapping[str, tuple[Any, ...]]
) -> Precision:
    """A configuration as an engine can honour it.

    honoured: option -> the values that the engine has, its own first. An option that was left at
        its default takes the engine's own value, with a note for the report; another value that
        it does not have is a ConfigError that names it.
    """
    config = WeightOnlyQuantConfig(**asked)
    defaults = WeightOnlyQuantConfig().to_dict()
    options, notes = config.to_dict(), {}
    for option, values in honoured.items():
        value = options[option]
        if value in values:
            continue
        if value != defaults[option]:
            raise ConfigError(
                f"engine {engine!r} has no {option}={value!r}, expected one of "
                f"{', '.join(map(repr, values))}: leave it out, or use engine='native'"
            )
        options[option] = values[0]
        notes[option] = f"{values[0]}: engine {engine!r} has no {value!r}, the default"
    return Precision(config=config, options=options, notes=notes)


def weight_bytes(architecture: Architecture, precision: Precision) -> int:
    """Bytes of matrices that decoding one token reads, where they are read once."""
    total = 0.0
    for spec in architecture.tensors():
        if spec.role not in ("linear", "lm_head"):
            continue
        rows, cols = spec.shape
        if precision.options is None:
            total += rows * cols * FLOAT_BITS[str(precision.dtype)] / 8
            continue
        options = precision.options
        name = options["lm_head"] if spec.role == "lm_head" else options["weight_dtype"]
        if name in FLOAT_BITS:
            total += rows * cols * FLOAT_BITS[name] / 8
            continue
        group = cols if options["group_size"] == -1 else options["group_size"]
        scale = FLOAT_BITS[options["scale_dtype"]] / 8
        total += rows * (cols * WEIGHT_BITS[name] / 8 + -(-cols // group) * scale)
    return round(total)


def cache_bytes(architecture: Architecture, context: int, dtype: str) -> int:
    """Bytes of keys and values that decoding one token at position `context` reads, in an engine
    that computes attention over all that it has kept."""
    position = KV_FORMATS[dtype].bytes_per_position(architecture.kv_heads, architecture.head_dim)
    return architecture.layers * context * position
