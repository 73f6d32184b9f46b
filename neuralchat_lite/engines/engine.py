"""Protocols of engines, decoders and caches, and the request that opens an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeGuard

from torch import Tensor

from neuralchat_lite.errors import ConfigError, PromptError
from neuralchat_lite.families.architecture import Architecture
from neuralchat_lite.kernels.kv_format import KV_FORMATS
from neuralchat_lite.models.decoder import PREFILL_BLOCK, Keep, kept_of
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.quantization.levels import LEVELS
from neuralchat_lite.quantization.spellings import float_name
from neuralchat_lite.values import shown

FLOAT_BITS = {"bf16": 16, "fp32": 32}


# What to check when logits are not finite, of an engine that cannot say it more closely.
WHEN_NOT_FINITE = "download the checkpoint again, or load it with dtype='fp32' or engine='native'"


class Cache(Protocol):
    """Keys and values of one sequence. See `models.kv_cache.KVCache`."""

    @property
    def length(self) -> int: ...

    def can_truncate(self, length: int) -> bool: ...

    def truncate(self, length: int) -> None: ...

    def copy(self) -> Any:
        """A copy, for another sequence that starts with the same tokens."""
        ...


class Decoder(Protocol):
    """A model that turns token ids into logits. See `models.decoder.Decoder`.

    A cache from `new_cache` must only be used with the decoder that made it. A decoder that knows
    what to check when its logits are not finite says it in `when_not_finite`.
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
        keep: Keep = 1,
    ) -> list[Tensor]:
        """Feed several sequences, each with a cache of its own.

        Returns for each the fp32 logits of its last `keep` tokens (a number for all, or one for
        each), or of all when None:
        [min(keep, len(ids)), vocab]. Raises PromptError as `forward` does; all caches are
        then unchanged.
        """
        ...

    def bytes_per_token(self, context: int) -> int:
        """Bytes of weights, keys and values that decoding one token at position `context` reads."""
        ...


class Embedder(Decoder, Protocol):
    """A decoder that also gives the hidden states of tokens. Not every engine has one."""

    def hidden_states(
        self, batch: Sequence[Sequence[int] | Tensor], caches: Sequence[Any]
    ) -> list[Tensor]:
        """Feed several sequences as `forward_batch` does. Returns for each what the last norm
        gives of each token, [len(ids), hidden] fp32."""
        ...


def can_embed(decoder: Decoder) -> TypeGuard[Embedder]:
    return hasattr(decoder, "hidden_states")


def block_of(decoder: Decoder) -> int:
    """Tokens that a decoder is fed at a time, so that it can be called off in between."""
    return getattr(decoder, "prefill_block", PREFILL_BLOCK)


class OneByOne:
    """`Decoder.forward_batch` of an engine that computes one sequence after the other."""

    def forward_batch(
        self: Decoder,
        batch: Sequence[Sequence[int] | Tensor],
        caches: Sequence[Any],
        *,
        keep: Keep = 1,
    ) -> list[Tensor]:
        """See `Decoder.forward_batch`."""
        assert len(batch) == len(caches) == len(set(map(id, caches)))
        before = [cache.length for cache in caches]
        kept = kept_of(keep, batch)
        try:
            return [
                last_logits(self, ids, cache, count)
                for ids, cache, count in zip(batch, caches, kept, strict=True)
            ]
        except BaseException:
            for cache, length in zip(caches, before, strict=True):
                cache.truncate(length)
            raise


def last_logits(decoder: Decoder, ids: Sequence[int] | Tensor, cache: Any, keep: int) -> Tensor:
    if keep <= 1:
        return decoder.forward(ids, cache)[None][:keep]
    # Logits that are not returned are not computed: each row is as long as the vocabulary.
    begin = max(0, len(ids) - keep)
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
        """The engine's part of `Model.report()`: what runs, and why."""
        ...

    def close(self) -> None:
        """Free what it holds outside this process. The engine cannot be used afterwards."""
        ...


class FullCache:
    """A cache that keeps every position, so it can go back to any length. Layers with a sliding
    window apply it as a mask. Engines add their keys and values, and `copy`."""

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
    """The request that `open_engine` gets.

    folder: of the checkpoint
    architecture: as its config.json describes it
    asked: the options of WeightOnlyQuantConfig that were given; None when there are none
    dtype: dtype for unquantized weights; None when none was given
    context_length: the most positions, as `checked_context` returns it
    threads: as `check_threads` accepts it; None for the engine's own choice
    """

    folder: Path
    architecture: Architecture
    asked: Mapping[str, Any] | None
    dtype: Any
    context_length: int
    threads: int | None


@dataclass(frozen=True)
class Precision:
    """The precision of an engine: a float type, or a quantization.

    config: the configuration that was asked for; None for a float type
    options: the options that the engine really uses
    notes: option -> why the engine does not use the configuration's default
    """

    dtype: str | None = None
    config: WeightOnlyQuantConfig | None = None
    options: Mapping[str, Any] | None = None
    notes: Mapping[str, str] | None = None


def float_precision(engine: str, request: Request, default: str) -> Precision:
    """The float type for an engine that does not quantize. Raises ConfigError."""
    if request.asked is not None:
        raise ConfigError(
            f"engine {engine!r} runs the checkpoint's own weights, not quantized ones with "
            f"{', '.join(request.asked)}: give dtype='bf16' or 'fp32', or use engine='native'"
        )
    return Precision(float_name(default if request.dtype is None else request.dtype))


def quantized_precision(
    engine: str, config: WeightOnlyQuantConfig, honoured: Mapping[str, tuple[Any, ...]]
) -> Precision:
    """A configuration with the values that an engine supports.

    honoured: option -> the values that the engine supports, its default first. An option that was
        left at this library's default takes the engine's default, with a note for the report.

    Raises ConfigError for any other value that the engine does not support.
    """
    if config.overrides:
        raise ConfigError(
            f"engine {engine!r} quantizes all matrices alike: leave overrides out, or use "
            "engine='native'"
        )
    defaults = WeightOnlyQuantConfig().to_dict()
    options, notes = config.to_dict(), {}
    for option, values in honoured.items():
        value = options[option]
        if value in values:
            continue
        if value != defaults[option]:
            raise ConfigError(
                f"engine {engine!r} does not support {option}={shown(value)}, expected one of "
                f"{', '.join(map(repr, values))}: leave it out, or use engine='native'"
            )
        options[option] = values[0]
        notes[option] = f"{values[0]}: engine {engine!r} does not support {value!r}, the default"
    return Precision(config=config, options=options, notes=notes)


def weight_bytes(architecture: Architecture, precision: Precision) -> int:
    """Bytes of matrices that decoding one token reads, each matrix once."""
    total = 0.0
    for spec in architecture.tensors():
        if not spec.is_matrix:
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
        total += rows * (cols * LEVELS[name].bits / 8 + -(-cols // group) * scale)
    return round(total)


def cache_bytes(architecture: Architecture, context: int, dtype: str) -> int:
    """Bytes of keys and values that decoding one token at position `context` reads, in an engine
    that attends to every position in its cache."""
    position = KV_FORMATS[dtype].bytes_per_position(architecture.kv_heads, architecture.head_dim)
    return architecture.layers * context * position
