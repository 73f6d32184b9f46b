"""Load a model and let it speak: the calls that most programs need."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from neuralchat_lite.chat import Conversation, encode_prompt, with_stops
from neuralchat_lite.detokenize import Tokenizer
from neuralchat_lite.errors import CacheError, CheckpointError, ConfigError
from neuralchat_lite.generation import GenerationOptions, Piece, Reply, fold
from neuralchat_lite.generation import stream as stream_ids
from neuralchat_lite.model.decoder import Decoder, load_decoder
from neuralchat_lite.quantization.config import FLOATS, WeightOnlyQuantConfig
from neuralchat_lite.weights.architecture import Architecture
from neuralchat_lite.weights.cache import cached
from neuralchat_lite.weights.checkpoint import Checkpoint, open_checkpoint
from neuralchat_lite.weights.convert import hashing, quantize_checkpoint
from neuralchat_lite.weights.hub import Resolved, resolve
from neuralchat_lite.weights.identity import identify
from neuralchat_lite.weights.packed import is_packed, open_packed

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class Model:
    """A model that is ready to speak. Made by `load`.

    Its weights are shared and never written. Each generation has a key/value cache and a random
    generator of its own, so that calls from several threads do not mix; their operations take
    turns on the CPU.

    folder: where its files lie; for a quantized model the quantized folder
    config: how it is quantized; None when it is not
    load_s: what loading took, in seconds (quantizing included, when it was needed)
    """

    decoder: Decoder
    tokenizer: Tokenizer
    folder: Path
    config: WeightOnlyQuantConfig | None
    load_s: float

    @property
    def architecture(self) -> Architecture:
        return self.decoder.architecture

    def generate(self, prompt: Any, **options: Any) -> Reply:
        """Answer a prompt: `stream`, joined."""
        return fold(self.stream(prompt, **options))

    def stream(self, prompt: Any, **options: Any) -> Iterator[Piece]:
        """Answer a prompt token by token; closing the iterator cancels.

        prompt: a text, a list of {"role", "content"} messages, or token ids (see
            `chat.encode_prompt`)
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
        """What runs, and why: kernels, threads, precisions, sizes (bytes), times (seconds)."""
        from neuralchat_lite.kernels import native

        isa, threads = native.isa(), native.threads()
        return {
            "folder": str(self.folder),
            "model_type": self.architecture.model_type,
            "weights": self.config.to_dict() if self.config else "as in the checkpoint",
            "kernels": self.decoder.kernels.name,
            "isa": isa.value,
            "isa_why": isa.why,
            "threads": int(threads.value),
            "threads_why": threads.why,
            "compute_dtype": self.decoder.compute_dtype,
            "context_length": self.decoder.context_length,
            "weight_bytes": self.decoder.weight_bytes,
            "load_s": self.load_s,
        }

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Copy the quantized model to a folder that stands alone; `load` maps it.

        Raises ConfigError when the model is not quantized, CacheError when the folder is not
        empty or cannot be written.
        """
        if self.config is None:
            raise ConfigError(
                f"this model has the weights of its checkpoint: copy {self.folder}, or load it "
                "with a WeightOnlyQuantConfig first"
            )
        return copy_folder(self.folder, Path(folder))


def load(
    model: str | os.PathLike[str],
    quantization_config: WeightOnlyQuantConfig | None = None,
    *,
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
    quantization_config: how to quantize (default: int4, groups of 32); must agree with what a
        quantized folder holds, except for compute_dtype
    dtype: "fp32" or "bf16" runs the checkpoint's own weights, not quantized, computing in it
    revision, token: of a hub name
    cache_dir: where quantized models are kept, instead of the default cache
    context_length: positions to allow; the model's own default when None
    threads: of the operations, in the whole process; physical cores when None
    progress: called with each step of quantizing (see `weights.convert.Progress`)

    Raises ConfigError, CheckpointError, UnsupportedModelError, CacheError or HubError.
    """
    start = time.perf_counter()
    if dtype is not None and quantization_config is not None:
        raise ConfigError(
            f"dtype={str(dtype)!r} means weights that are not quantized, and "
            "quantization_config the contrary: give one of them"
        )
    if threads is not None:
        set_threads(threads)
    found = resolve(model, revision, token)
    if dtype is not None:
        decoder = load_unquantized(found.folder, dtype, context_length)
        folder, config = found.folder, None
    else:
        folder = quantized_folder(found, quantization_config, cache_dir, progress)
        packed = open_packed(folder)
        config = agreed_config(packed.config, quantization_config, folder)
        decoder = load_decoder(
            packed, compute_dtype=config.compute_dtype, context_length=context_length
        )
    tokenizer = load_tokenizer(folder)
    return Model(decoder, tokenizer, folder, config, time.perf_counter() - start)


def quantize(
    model: str | os.PathLike[str],
    quantization_config: WeightOnlyQuantConfig | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Callable[[Any], None] | None = None,
) -> Path:
    """Quantize a checkpoint into `output`, a new folder that stands alone, or into the cache.

    Returns the quantized folder. Raises what `load` raises, and CacheError when `output` is not
    empty or cannot be written.
    """
    found = resolve(model, revision, token)
    if is_packed(found.folder):
        raise ConfigError(f"{found.folder} is quantized already: load it, or copy it as it is")
    if output is None:
        return quantized_folder(found, quantization_config, cache_dir, progress)
    source = open_source(found.folder)
    source_id = identify(source, hub=found.hub, progress=hashing(progress))
    config = quantization_config or WeightOnlyQuantConfig()
    return quantize_checkpoint(source, config, Path(output), source_id=source_id, progress=progress)


def generate(model: Model, prompt: Any, **options: Any) -> Reply:
    """`model.generate(prompt, **options)`."""
    return model.generate(prompt, **options)


def stream(model: Model, prompt: Any, **options: Any) -> Iterator[Piece]:
    """`model.stream(prompt, **options)`."""
    return model.stream(prompt, **options)


def load_unquantized(folder: Path, dtype: Any, context_length: int | None) -> Decoder:
    name = FLOATS.get(str(dtype))
    if name is None:
        raise ConfigError(
            f"dtype must be 'fp32' or 'bf16', got {dtype!r}: "
            "for int4 or int8 give a WeightOnlyQuantConfig"
        )
    if is_packed(folder):
        raise ConfigError(
            f"dtype={name!r} needs the original checkpoint, but {folder} is quantized: "
            "leave dtype out, or give the checkpoint's folder"
        )
    return load_decoder(open_source(folder), compute_dtype=name, context_length=context_length)


def open_source(folder: Path) -> Checkpoint:
    """A checkpoint that can also speak: a missing tokenizer is said before minutes of work."""
    checkpoint = open_checkpoint(folder)
    require_tokenizer(folder)
    return checkpoint


def quantized_folder(
    found: Resolved,
    config: WeightOnlyQuantConfig | None,
    cache_dir: str | os.PathLike[str] | None,
    progress: Callable[[Any], None] | None,
) -> Path:
    if is_packed(found.folder):
        return found.folder
    return cached(
        open_source(found.folder),
        config or WeightOnlyQuantConfig(),
        hub=found.hub,
        root=None if cache_dir is None else Path(cache_dir),
        progress=progress,
    )


def agreed_config(
    stored: WeightOnlyQuantConfig, asked: WeightOnlyQuantConfig | None, folder: Path
) -> WeightOnlyQuantConfig:
    """What was asked for, when the stored weights are that; raises ConfigError otherwise."""
    if asked is None:
        return stored
    want, have = asked.bytes_config(), stored.bytes_config()
    differing = [
        f"{key}={want[key]!r} (stored: {have[key]!r})" for key in want if want[key] != have[key]
    ]
    if differing:
        raise ConfigError(
            f"{folder} is quantized otherwise than asked for: {', '.join(differing)}; leave the "
            "quantization_config out, or quantize the original checkpoint again"
        )
    return asked


def set_threads(count: int) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ConfigError(f"threads must be a positive integer, got {count!r}")
    from neuralchat_lite.kernels import native

    native.set_threads(count)


def require_tokenizer(folder: Path) -> None:
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise CheckpointError(
            f"{folder} has no tokenizer, expected one of {', '.join(TOKENIZER_FILES)}: "
            "copy the tokenizer files of the model there"
        )


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder. Runs no code from it and never goes to the network."""
    require_tokenizer(folder)
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    # What goes wrong here is always the files: the parsers raise everything, even bare Exception.
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"the tokenizer files in {folder} cannot be read ({first_line}): download them again"
        ) from error
    return cast(Tokenizer, tokenizer)


def copy_folder(source: Path, target: Path) -> Path:
    """Copy a model folder whole or not at all."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CacheError(f"{target} exists and is not empty: choose another folder, or remove it")
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        for file in sorted(source.iterdir()):
            if file.is_file() and not file.name.startswith("."):
                shutil.copyfile(file, temporary / file.name)
        target.mkdir(exist_ok=True)  # with the permissions that the user's umask gives
        temporary.chmod(target.stat().st_mode)
        temporary.replace(target)
    except OSError as error:
        raise CacheError(f"cannot copy the model to {target}: {error.strerror or error}") from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary)
    return target
