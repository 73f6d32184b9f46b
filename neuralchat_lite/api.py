"""Load a model and let it speak: the calls that most programs need."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neuralchat_lite.adapters.adapter import MergedCheckpoint
from neuralchat_lite.adapters.merge import write_merged
from neuralchat_lite.checkpoints.checkpoint import Checkpoint
from neuralchat_lite.checkpoints.hub import Resolved, resolve
from neuralchat_lite.checkpoints.identity import identify
from neuralchat_lite.checkpoints.kinds import is_packed
from neuralchat_lite.checkpoints.tokenizer import Tokenizer, load_tokenizer
from neuralchat_lite.engines import NATIVE, check_name, open_engine
from neuralchat_lite.engines.engine import Decoder, Engine, Request
from neuralchat_lite.engines.native import open_native
from neuralchat_lite.errors import CacheError, ConfigError
from neuralchat_lite.families.architecture import Architecture, checked_context
from neuralchat_lite.files.folder import require_empty
from neuralchat_lite.files.names import MANIFEST, QUANTIZATION, SIDECARS
from neuralchat_lite.files.progress import hashing
from neuralchat_lite.generation.conversation import Conversation, encode_prompt, with_stops
from neuralchat_lite.generation.loop import GenerationOptions, Piece, Reply, fold
from neuralchat_lite.generation.loop import stream as stream_ids
from neuralchat_lite.kernels import native
from neuralchat_lite.loading import (
    Adapters,
    merged_adapters,
    open_source,
    refuse_adapters_of_quantized,
    resolve_adapters,
)
from neuralchat_lite.packed.cache import cached
from neuralchat_lite.packed.convert import quantize_checkpoint
from neuralchat_lite.packed.format import PackedModel, open_packed
from neuralchat_lite.packed.manifest import read_manifest, released
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig, float_name

QuantizationOptions = WeightOnlyQuantConfig | Mapping[str, Any] | None


@dataclass(frozen=True)
class Model:
    """A model that is ready to speak. Made by `load`.

    Its weights are shared and never written. Each generation has a key/value cache and a random
    generator of its own, so that calls from several threads do not mix; their operations take
    turns on the CPU.

    engine: what runs it
    folder: where its files lie; for a quantized model the quantized folder
    config: how it is quantized; None when it is not
    load_s: what loading took, in seconds (quantizing included, when it was needed)
    adapters: what was merged into it, in order: hub names, folder names, or in a quantized model
        the digests of local adapters
    """

    engine: Engine
    tokenizer: Tokenizer
    folder: Path
    config: WeightOnlyQuantConfig | None
    load_s: float
    adapters: tuple[str, ...] = ()

    @property
    def decoder(self) -> Decoder:
        return self.engine.decoder

    @property
    def architecture(self) -> Architecture:
        return self.decoder.architecture

    def generate(self, prompt: Any, **options: Any) -> Reply:
        """Answer a prompt: `stream`, joined."""
        return fold(self.stream(prompt, **options))

    def stream(self, prompt: Any, **options: Any) -> Iterator[Piece]:
        """Answer a prompt token by token; closing the iterator cancels.

        prompt: a text, a list of {"role", "content"} messages, or token ids (see
            `generation.prompt.encode_prompt`)
        options: those of `GenerationOptions`
        Raises PromptError or ConfigError at once, before the first piece is asked for.
        """
        settings = GenerationOptions.of(options)
        encoded = encode_prompt(prompt, self.tokenizer, self.architecture.vocab_size)
        pieces = stream_ids(
            self.decoder, self.tokenizer, encoded.ids, with_stops(settings, encoded.stop)
        )
        return self.with_load_time(pieces)

    def with_load_time(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            if piece.timings is not None:
                piece = replace(piece, timings=replace(piece.timings, load_s=self.load_s))
            yield piece

    def conversation(self, system: str | None = None, **options: Any) -> Conversation:
        """A conversation of several turns, which keeps what was said in its key/value cache."""
        return Conversation(self.decoder, self.tokenizer, system, **options)

    def report(self) -> dict[str, Any]:
        """What runs, and why: engine, threads, precisions, sizes (bytes), times (seconds)."""
        return {
            "folder": str(self.folder),
            "model_type": self.architecture.model_type,
            "weights": self.config.to_dict() if self.config else "as in the checkpoint",
            "adapters": list(self.adapters),
            "chat_template": "the model's own" if self.tokenizer.chat_template else "neural-chat's",
            "context_length": self.decoder.context_length,
            "load_s": self.load_s,
            **self.engine.describe(),
        }

    def close(self) -> None:
        """End the process of an engine that has one of its own; the model answers no more.

        Models that nobody holds are closed too.
        """
        self.engine.close()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Copy the quantized model to a folder that stands alone; `load` maps it.

        A tokenizer may be saved there too, before or after. Raises ConfigError when the model is
        not quantized, CacheError when the folder has other files or cannot be written.
        """
        if self.config is None:
            raise ConfigError(
                f"this model has the weights of its checkpoint: copy {self.folder} (if adapters "
                "are merged into it, write it with neuralchat_lite.merge), or load it with a "
                "WeightOnlyQuantConfig first"
            )
        if not is_packed(self.folder):
            raise ConfigError(
                f"engine {self.report()['engine']!r} has quantized this model in its own memory: "
                "load it with engine='native' to save it"
            )
        return copy_folder(self.folder, self.config, Path(folder))


def load(
    model: str | os.PathLike[str] | Resolved,
    quantization_config: QuantizationOptions = None,
    *,
    adapters: Adapters | None = (),
    engine: str = NATIVE,
    compute_dtype: Any = None,
    dtype: Any = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    context_length: int | None = None,
    threads: int | None = None,
    progress: Callable[[Any], None] | None = None,
) -> Model:
    """Load a model, quantizing it first unless that was done before.

    model: a folder with a Hugging Face checkpoint, a quantized folder, or a hub name
    quantization_config: how to quantize (default: int4, groups of 32), or a dictionary of some
        of its options; must agree with what a quantized folder holds, except for compute_dtype
    adapters: PEFT LoRA folders or hub names, merged into a checkpoint in this order before it is
        quantized; the last tokenizer and chat template among them replace the checkpoint's
    engine: "native"; or, as a reference, "torch" (transformers in bf16 or fp32), "ipex" (bf16, fp32
        or its own weight-only quantization) or "itrex" (its own int4 and int8) run a checkpoint;
        the last two in an environment that `neuralchat-lite engines setup` makes
    compute_dtype: precision of the activations, instead of the configuration's
    dtype: "fp32" or "bf16" runs the checkpoint's own weights, not quantized, computing in it
    revision: of the model's hub name
    token: for hub names
    cache_dir: where quantized models are kept, instead of the default cache
    context_length: positions to allow; the model's own default when None
    threads: of the operations, in the whole process; physical cores when None
    progress: called with each step of quantizing (see `files.progress.Progress`)

    Raises ConfigError, CheckpointError, UnsupportedModelError, CacheError, HubError or EngineError.
    """
    check_name(engine)
    refuse_adapters_of_engine(engine, adapters)
    start = time.perf_counter()
    asked = options_of(quantization_config)
    if compute_dtype is not None:
        asked = {**(asked or {}), "compute_dtype": compute_dtype}
    if dtype is not None and asked is not None:
        raise ConfigError(
            f"dtype={str(dtype)!r} means weights that are not quantized, and "
            f"{', '.join(asked)} the contrary: give one of them"
        )
    if threads is not None and engine == NATIVE:
        native.set_threads(threads)
    tuned = resolve_adapters(adapters, token)
    found = resolve(model, revision, token)
    folder, config = found.folder, None
    weights: Checkpoint | MergedCheckpoint | PackedModel
    if is_packed(folder):
        refuse_engine_of_quantized(folder, engine)
        refuse_adapters_of_quantized(folder, tuned)
        refuse_dtype_of_quantized(folder, dtype)
        weights = open_packed(folder)
        config = agreed_config(weights.config, asked, folder)
        tokenizer = load_tokenizer(folder)
    else:
        weights, tokenizer = open_source(found, tuned, context_length)
        if engine != NATIVE:
            arch = weights.architecture
            length = checked_context(arch, context_length)
            running = open_engine(engine, Request(folder, arch, asked, dtype, length, threads))
            return Model(running, tokenizer, folder, running.config, time.perf_counter() - start)
        if dtype is None:
            config = WeightOnlyQuantConfig(**(asked or {}))
            root = cache_root(cache_dir)
            folder = cached(weights, config, hub=found.hub, root=root, progress=progress)
            weights = open_packed(folder)
    compute = float_name(dtype) if config is None else config.compute_dtype
    running = open_native(weights, config, compute_dtype=compute, context_length=context_length)
    return Model(
        running,
        tokenizer,
        folder,
        config,
        load_s=time.perf_counter() - start,
        adapters=merged_adapters(weights),
    )


def quantize(
    model: str | os.PathLike[str],
    quantization_config: QuantizationOptions = None,
    output: str | os.PathLike[str] | None = None,
    *,
    adapters: Adapters | None = (),
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Callable[[Any], None] | None = None,
) -> Path:
    """Quantize a checkpoint into `output`, a new folder that stands alone, or into the cache.

    adapters: merged first, as in `load`

    Returns the quantized folder. In the cache a model has no compute_dtype: `load` chooses it.
    Raises what `load` raises, and CacheError when `output` is not empty or cannot be written.
    """
    config = WeightOnlyQuantConfig(**(options_of(quantization_config) or {}))
    tuned = resolve_adapters(adapters, token)
    found = resolve(model, revision, token)
    if is_packed(found.folder):
        raise ConfigError(f"{found.folder} is quantized already: load it, or copy it as it is")
    if output is not None:
        require_empty(Path(output))
    source, _ = open_source(found, tuned)
    if output is None:
        return cached(source, config, hub=found.hub, root=cache_root(cache_dir), progress=progress)
    source_id = identify(source, hub=found.hub, progress=hashing(progress))
    return quantize_checkpoint(source, config, Path(output), source_id=source_id, progress=progress)


def merge(
    model: str | os.PathLike[str],
    adapters: Adapters,
    output: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    progress: Callable[[Any], None] | None = None,
) -> Path:
    """Merge PEFT LoRA adapters into a checkpoint, in order, and write it to the new folder
    `output` in the layout of transformers; returns it.

    Sums are in fp32, rounded once to the checkpoint's dtype. Raises what `quantize` raises.
    """
    tuned = resolve_adapters(adapters, token)
    if not tuned:
        raise ConfigError("merge needs at least one adapter, got none: give a folder or a hub name")
    require_empty(Path(output))
    found = resolve(model, revision, token)
    refuse_adapters_of_quantized(found.folder, tuned)
    source, _ = open_source(found, tuned)
    assert isinstance(source, MergedCheckpoint)
    return write_merged(source, Path(output), progress)


def generate(model: Model, prompt: Any, **options: Any) -> Reply:
    """`model.generate(prompt, **options)`."""
    return model.generate(prompt, **options)


def stream(model: Model, prompt: Any, **options: Any) -> Iterator[Piece]:
    """`model.stream(prompt, **options)`."""
    return model.stream(prompt, **options)


def options_of(config: Any) -> dict[str, Any] | None:
    """The options that were given: all of a configuration, or some in a dictionary."""
    if isinstance(config, str):
        return {"weight_dtype": config}
    if config is None or isinstance(config, Mapping):
        return None if config is None else dict(config)
    if isinstance(config, WeightOnlyQuantConfig):
        return config.to_dict()
    raise ConfigError(
        f"quantization_config must be a WeightOnlyQuantConfig or a dictionary of its options, got "
        f"{config!r}"
    )


def refuse_adapters_of_engine(engine: str, adapters: Adapters | None) -> None:
    if adapters and engine != NATIVE:
        raise ConfigError(
            f"engine {engine!r} reads a checkpoint from its folder, and adapters are merged in "
            "memory: write a merged one first, with neuralchat_lite.merge, and load that"
        )


def refuse_engine_of_quantized(folder: Path, engine: str) -> None:
    if engine != NATIVE:
        raise ConfigError(
            f"engine {engine!r} runs original checkpoints, but {folder} is quantized for the "
            "native engine: give the checkpoint's folder, or leave engine out"
        )


def refuse_dtype_of_quantized(folder: Path, dtype: Any) -> None:
    if dtype is not None:
        raise ConfigError(
            f"dtype={float_name(dtype)!r} needs the original checkpoint, but {folder} is "
            "quantized: leave dtype out, or give the checkpoint's folder"
        )


def cache_root(given: str | os.PathLike[str] | None) -> Path | None:
    if given is None:
        return None
    if not os.fspath(given):
        raise ConfigError("cache_dir is an empty text: give a folder, or leave it out")
    return Path(given).expanduser()


def agreed_config(
    stored: WeightOnlyQuantConfig, asked: Mapping[str, Any] | None, folder: Path
) -> WeightOnlyQuantConfig:
    """The stored configuration with what was asked for, when the stored weights are that; raises
    ConfigError otherwise."""
    config = WeightOnlyQuantConfig(**{**stored.to_dict(), **(asked or {})})
    want, have = config.bytes_config(), stored.bytes_config()
    differing = [
        f"{key}={want[key]!r} (stored: {have[key]!r})" for key in want if want[key] != have[key]
    ]
    if differing:
        raise ConfigError(
            f"{folder} is quantized otherwise than asked for: {', '.join(differing)}; leave these "
            "options out, or quantize the original checkpoint again"
        )
    return config


def copy_folder(source: Path, config: WeightOnlyQuantConfig, target: Path) -> Path:
    """Copy a quantized folder whole or not at all, to be its owner's: see `manifest.released`.

    config: how the copy is to be run, unless the next `load` says otherwise
    A tokenizer that was saved to `target` before stays.
    """
    if target.exists() and not target.is_dir():
        raise CacheError(f"{target} is a file: choose another folder, or remove it")
    theirs = sorted(target.iterdir()) if target.exists() else []
    if not {path.name for path in theirs} <= {*SIDECARS} - {"config.json"}:
        raise CacheError(f"{target} exists and is not empty: choose another folder, or remove it")
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        for file in sorted(source.iterdir()):
            if file.is_file() and not file.name.startswith("."):
                shutil.copyfile(file, temporary / file.name)
        (temporary / QUANTIZATION).write_text(config.to_json(), encoding="utf-8")
        manifest = json.dumps(released(read_manifest(source), config), indent=2) + "\n"
        (temporary / MANIFEST).write_text(manifest, encoding="utf-8")
        for file in theirs:
            shutil.copyfile(file, temporary / file.name)
        target.mkdir(exist_ok=True)  # with the permissions that the user's umask gives
        temporary.chmod(target.stat().st_mode)
        for file in theirs:  # a folder is only replaced when it is empty
            file.unlink()
        temporary.replace(target)
    except OSError as error:
        raise CacheError(f"cannot copy the model to {target}: {error.strerror or error}") from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary)
    return target
