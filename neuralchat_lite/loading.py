"""Loading a model: `plan_loading` makes a plan, and `open_plan` opens it.

The plan checks everything that can be checked without reading weights, and names the function
of WAYS that opens the model.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuralchat_lite.adapters.adapter import Adapter, open_adapter
from neuralchat_lite.adapters.merged import MergedCheckpoint
from neuralchat_lite.checkpoints import open_source
from neuralchat_lite.checkpoints.hub import ADAPTER, HUB_NAME, Resolved, resolve
from neuralchat_lite.checkpoints.source import Source
from neuralchat_lite.checkpoints.tokenizer import Tokenizer, load_tokenizer
from neuralchat_lite.checkpoints.tokenizer_fit import check_tokenizer_fits
from neuralchat_lite.engines import NATIVE, check_name, open_engine
from neuralchat_lite.engines.engine import Engine, Request
from neuralchat_lite.engines.native import open_native
from neuralchat_lite.errors import CheckpointError, ConfigError
from neuralchat_lite.families.architecture import HEAD_MODULE, checked_context
from neuralchat_lite.families.rope import RotaryTable
from neuralchat_lite.files.folder import given_folder
from neuralchat_lite.files.progress import ProgressCallback
from neuralchat_lite.generation.calibration_texts import (
    CalibrationOption,
    Texts,
    texts_of,
    tokenized,
)
from neuralchat_lite.generation.streaming_probe import check_pieces
from neuralchat_lite.kernels import native
from neuralchat_lite.kernels.cpu import check_threads
from neuralchat_lite.kernels.kv_format import KVFormat, kv_format_of
from neuralchat_lite.packed.cache import open_cached
from neuralchat_lite.packed.format import PackedModel, open_packed
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.quantization.spellings import float_name
from neuralchat_lite.values import shown

log = logging.getLogger(__name__)

Adapters = Sequence[str | os.PathLike[str] | Resolved]


# ---- the plan ----


@dataclass(frozen=True)
class Plan:
    """What to load, and how. Made by `plan_loading`.

    found: the folder of the model
    way: a key of WAYS
    asked: the options of WeightOnlyQuantConfig that were given; None when there are none
    dtype: dtype of unquantized weights; None when the weights are quantized
    kv_format: of keys and values; None for the default
    cache_root: cache folder of quantized models; None for the default
    calibration: texts for an algorithm that looks at activations
    default_compute: compute_dtype of what is quantized when `asked` has none
    """

    found: Resolved
    way: str
    adapters: Sequence[Resolved]
    asked: Mapping[str, Any] | None
    dtype: Any
    engine: str
    context_length: int | None
    kv_format: KVFormat | None
    threads: int | None
    cache_root: Path | None
    default_compute: str | None = None
    calibration: Texts | None = None


@dataclass(frozen=True)
class Opened:
    """An opened model. `model.Model` has the same fields."""

    engine: Engine
    tokenizer: Tokenizer
    folder: Path
    config: WeightOnlyQuantConfig | None
    adapters: tuple[str, ...] = ()


def plan_loading(
    model: str | os.PathLike[str] | Resolved,
    quantization_config: Any,
    *,
    adapters: Adapters | None,
    engine: str,
    compute_dtype: Any,
    dtype: Any,
    revision: str | None,
    token: str | None,
    cache_dir: str | os.PathLike[str] | None,
    context_length: int | None,
    kv_cache_dtype: Any,
    threads: int | None,
    default_compute_dtype: str | None = None,
    calibration: CalibrationOption = None,
) -> Plan:
    """Decide how a model is loaded; downloads it if it is a hub name. See `api.load`."""
    check_name(engine)
    if default_compute_dtype is not None:
        WeightOnlyQuantConfig(compute_dtype=default_compute_dtype)
    if adapters and engine != NATIVE:
        raise ConfigError(
            f"engine {engine!r} reads a checkpoint from its folder, but adapters are merged in "
            "memory: write the merged checkpoint with neuralchat_lite.merge, then load that"
        )
    asked = options_of(quantization_config)
    if compute_dtype is not None:
        asked = {**(asked or {}), "compute_dtype": compute_dtype}
    if dtype is not None and asked is not None:
        raise ConfigError(
            f"dtype={str(dtype)!r} asks for unquantized weights, but "
            f"{', '.join(asked)} for quantized ones: give only one of them"
        )
    kv_format = None if kv_cache_dtype is None else kv_format_of(kv_cache_dtype)
    if kv_format and engine != NATIVE:
        raise ConfigError(
            f"engine {engine!r} keeps keys and values as it likes, not in {kv_format.name}: leave "
            "kv_cache_dtype out, or use engine='native'"
        )
    if threads is not None:
        threads = check_threads(threads, "threads")
    root = checked_root(cache_dir)
    texts = texts_of(calibration)
    found, tuned = find(model, adapters, revision, token)
    way = way_of(found, engine, dtype)
    if way == "engine" and not found.folder.is_dir():
        raise ConfigError(
            f"engine {engine!r} reads folders, and {found.folder} is a file: leave engine out"
        )
    if way == "packed":
        refuse_for_quantized(found.folder, engine, dtype)
        if tuned:
            raise adapters_of_quantized(found.folder)
    return Plan(
        found,
        way,
        tuned,
        asked,
        dtype,
        engine,
        context_length,
        kv_format,
        threads,
        root,
        default_compute_dtype,
        texts,
    )


def find(
    model: str | os.PathLike[str] | Resolved,
    adapters: Adapters | None,
    revision: str | None,
    token: str | None,
) -> tuple[Resolved, list[Resolved]]:
    """The folders of a model and its adapters. Hub names are downloaded, the adapters first."""
    tuned = resolve_adapters(adapters, token)
    return resolve(model, revision, token), tuned


def way_of(found: Resolved, engine: str, dtype: Any) -> str:
    if found.packed:
        return "packed"
    if engine != NATIVE:
        return "engine"
    return "quantize" if dtype is None else "unquantized"


def options_of(config: Any) -> dict[str, Any] | None:
    """The options that were given: all options of a configuration, those in a dictionary, or only
    the weight type when that is all that was named."""
    if config is None or isinstance(config, Mapping):
        return None if config is None else dict(config)
    if isinstance(config, WeightOnlyQuantConfig):
        return {**config.to_dict(), "overrides": config.overrides}
    if isinstance(config, str):
        return {"weight_dtype": config}
    raise ConfigError(
        "quantization_config must be a WeightOnlyQuantConfig, a dictionary of its options, or a "
        f"weight type such as 'int4', got {shown(config)}"
    )


def refuse_for_quantized(folder: Path, engine: str, dtype: Any) -> None:
    if engine != NATIVE:
        raise ConfigError(
            f"engine {engine!r} runs original checkpoints, but {folder} is quantized for the "
            "native engine: give the checkpoint's folder, or leave engine out"
        )
    if dtype is not None:
        raise ConfigError(
            f"dtype={float_name(dtype)!r} needs the original checkpoint, but {folder} is "
            "quantized: leave dtype out, or give the checkpoint's folder"
        )


def adapters_of_quantized(folder: Path) -> ConfigError:
    return ConfigError(
        f"adapters are merged before quantizing, but {folder} is already quantized: give the "
        "original checkpoint with the adapters"
    )


def checked_root(given: str | os.PathLike[str] | None) -> Path | None:
    return None if given is None else given_folder(given, "cache_dir")


def resolve_adapters(adapters: Adapters | None, token: str | None, **where: Any) -> list[Resolved]:
    """where: the options `cache_dir` and `local_files_only` of `hub.resolve`"""
    if adapters is None:
        return []
    if isinstance(adapters, str | os.PathLike) or not isinstance(adapters, Sequence):
        raise ConfigError(
            f"adapters must be a list of folders or hub names, got {shown(adapters)}: write it as "
            f"[{str(adapters)!r}]"
        )
    return [resolve(adapter, None, token, kind=ADAPTER, **where) for adapter in adapters]


# ---- opening it ----


def open_plan(plan: Plan, progress: ProgressCallback | None = None) -> Opened:
    if plan.threads is not None and plan.engine == NATIVE:
        native.set_threads(plan.threads)
    return WAYS[plan.way](plan, progress)


def open_packed_folder(plan: Plan, progress: ProgressCallback | None) -> Opened:
    """Map a quantized folder."""
    packed = open_packed(plan.found.folder)
    config = agreed_config(packed.config, plan.asked, packed.folder)
    length = checked_context(packed.architecture, plan.context_length)
    tokenizer = load_tokenizer(packed.folder)
    check_tokenizer_fits(packed.architecture, tokenizer, packed.folder)
    check_pieces(tokenizer, packed.folder)
    return run_packed(packed, config, tokenizer, length, plan.kv_format)


def quantize_and_open(plan: Plan, progress: ProgressCallback | None) -> Opened:
    """Open a checkpoint from the cache. Quantizes it first if it is not there."""
    source, tokenizer = open_with_tokenizer(plan.found, plan.adapters)
    length = checked_context(source.architecture, plan.context_length)
    config = config_for(source, plan.asked, plan.found.folder, plan.default_compute)
    packed = open_cached(
        source,
        config,
        calibration=tokenized(plan.calibration, tokenizer, source.architecture),
        root=plan.cache_root,
        progress=progress,
        origin=plan.found.folder,
    )
    return run_packed(packed, config, tokenizer, length, plan.kv_format)


def run_packed(
    packed: PackedModel,
    config: WeightOnlyQuantConfig,
    tokenizer: Tokenizer,
    length: int,
    kv_format: KVFormat | None,
) -> Opened:
    running = open_native(packed, config, context_length=length, kv_format=kv_format)
    return Opened(running, tokenizer, packed.folder, config, packed.adapters)


def open_unquantized(plan: Plan, progress: ProgressCallback | None) -> Opened:
    """Open a checkpoint's own weights with the native kernels."""
    source, tokenizer = open_with_tokenizer(plan.found, plan.adapters)
    if plan.found.folder.is_file() and source.implied_options({}):
        raise ConfigError(
            f"dtype={float_name(plan.dtype)!r} runs weights that are stored as floats, but "
            f"{plan.found.folder} has codes: leave dtype out, and give compute_dtype for the "
            "precision of the activations"
        )
    length = checked_context(source.architecture, plan.context_length)
    running = open_native(
        source, float_name(plan.dtype), context_length=length, kv_format=plan.kv_format
    )
    source.require_unchanged()
    return Opened(running, tokenizer, plan.found.folder, None, source.adapters)


def open_other_engine(plan: Plan, progress: ProgressCallback | None) -> Opened:
    """Open a checkpoint with an engine of another package."""
    folder = plan.found.folder
    source, tokenizer = open_with_tokenizer(plan.found)
    refuse_wrapped(source, plan.engine)
    arch = source.architecture
    length = checked_context(arch, plan.context_length)
    request = Request(folder, arch, plan.asked, plan.dtype, length, plan.threads)
    running = open_engine(plan.engine, request)
    return Opened(running, tokenizer, folder, running.config)


def refuse_wrapped(source: Source, engine: str) -> None:
    """transformers makes up the tensors whose names it does not know."""
    wrappers = getattr(source, "wrappers", ())
    if wrappers:
        raise CheckpointError(
            f"{source.folder}: names of tensors have {wrappers[0]!r}, which engine {engine!r} does "
            "not take off: save the model without its wrapper, or use engine='native'"
        )


WAYS: dict[str, Callable[[Plan, ProgressCallback | None], Opened]] = {
    "packed": open_packed_folder,
    "quantize": quantize_and_open,
    "unquantized": open_unquantized,
    "engine": open_other_engine,
}


def config_for(
    source: Source, asked: Mapping[str, Any] | None, origin: Path, compute: str | None = None
) -> WeightOnlyQuantConfig:
    """The configuration to quantize a source with: what was asked for, or what its codes have.

    origin: for errors
    compute: compute_dtype where `asked` has none
    Raises ConfigError when other codes are asked for than the stored ones.
    """
    given = {"compute_dtype": compute, **(asked or {})}
    stored = source.implied_options(asked or {})
    if not stored:
        return WeightOnlyQuantConfig(**given)
    floats = of_floats(source, stored, given)
    if floats:  # the codes have the scheme that they have, whatever another head would have
        given = {"scheme": stored["scheme"], **given}
        stored = {**stored, **floats}
    return agreed_config(WeightOnlyQuantConfig(**stored), given, origin)


def of_floats(
    source: Source, stored: Mapping[str, Any], asked: Mapping[str, Any]
) -> dict[str, Any]:
    """The options that were asked for of the head and the embedding, where a checkpoint of codes
    has these two as floats.

    stored: the options of its codes
    """
    if "lm_head" in stored or "overrides" in stored:
        return {}
    table = source.architecture.embedding_name.removesuffix(".weight")
    found = {
        each.pattern: each.given()
        for each in WeightOnlyQuantConfig(**asked).overrides
        if each.pattern in (HEAD_MODULE, table)
    }
    head = {"lm_head": asked["lm_head"]} if asked.get("lm_head") else {}
    return {**head, **({"overrides": found} if found else {})}


def agreed_config(
    stored: WeightOnlyQuantConfig, asked: Mapping[str, Any] | None, folder: Path
) -> WeightOnlyQuantConfig:
    """The stored configuration, updated with the options that were asked for. Raises ConfigError
    when they ask for other weights than the stored ones."""
    asked = asked or {}
    options = {**stored.to_dict(), **asked}
    implied = "scheme" not in asked
    if implied and {"weight_dtype", "lm_head"} & asked.keys():
        del options["scheme"]  # that of what is asked for, which differs too
    config = WeightOnlyQuantConfig(**options)
    want, have = config.bytes_config(), stored.bytes_config()
    differing = [
        f"{key}={want.get(key)!r} (stored: {have.get(key)!r})"
        for key in {**want, **have}
        if want.get(key) != have.get(key) and not (implied and key == "scheme")
    ]
    if differing:
        raise ConfigError(
            f"{folder} was quantized with different settings: {', '.join(differing)}; leave these "
            "options out, or quantize the original checkpoint again"
        )
    return config


def open_with_tokenizer(
    found: Resolved, adapters: Sequence[Resolved] = ()
) -> tuple[Source, Tokenizer]:
    """A source of weights, with adapters merged into it if there are any, and its tokenizer.

    Its rotary embedding and tokenizer are checked here, before minutes of quantizing.
    """
    source = open_source(found.folder, found.hub)
    RotaryTable(source.architecture)
    if not adapters:
        tokenizer = tokenizer_of(source)
        check_tokenizer_fits(source.architecture, tokenizer, source.folder or found.folder)
        check_pieces(tokenizer, source.folder or found.folder)
        return source, tokenizer
    if source.implied_options({}):
        raise adapters_of_quantized(found.folder)
    opened = [open_adapter(each.folder, source, each.hub) for each in adapters]
    for adapter in opened:
        warn_of_another_base(adapter, found.hub)
    merged = MergedCheckpoint(source, opened)
    tokenizer = tokenizer_of(merged, merged.tokenizer_origin or source.folder)
    origin = merged.tokenizer_origin
    base = None if origin is None else found.folder
    check_tokenizer_fits(merged.architecture, tokenizer, origin or found.folder, base)
    check_pieces(tokenizer, origin or found.folder)
    return merged, tokenizer


def warn_of_another_base(adapter: Adapter, hub: tuple[str, str] | None) -> None:
    """Warn when an adapter names another base. Its shapes decide whether it fits. The name of its
    base is often a path on the machine that trained it, so only hub names are compared."""
    said = adapter.config.base or ""
    if hub is not None and HUB_NAME.fullmatch(said) and said != hub[0]:
        log.warning(
            "the adapter %s says that it was trained on %s; it is merged into %s, because its "
            "shapes fit",
            adapter.name,
            said,
            hub[0],
        )


def tokenizer_of(source: Source, origin: Path | None = None, **options: Any) -> Tokenizer:
    """The tokenizer of a source: from its folder, or from `sidecars()` when it has no folder.

    origin: the folder to name in errors
    options: as of `load_tokenizer`
    """
    if source.folder is not None:
        return load_tokenizer(source.folder, **options)
    with tempfile.TemporaryDirectory(prefix="neuralchat-lite-") as folder:
        for name, data in source.sidecars().items():
            (Path(folder) / name).write_bytes(data)
        return load_tokenizer(Path(folder), origin, **options)
