"""Load models and generate text: the calls that most programs need."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from typing_extensions import Unpack

from neuralchat_lite.checkpoints.hub import Resolved
from neuralchat_lite.checkpoints.kinds import is_packed
from neuralchat_lite.checkpoints.sidecars import open_sidecars
from neuralchat_lite.checkpoints.source import read_files
from neuralchat_lite.checkpoints.tokenizer import Tokenizer, load_tokenizer
from neuralchat_lite.checkpoints.write import write_checkpoint
from neuralchat_lite.engines import NATIVE
from neuralchat_lite.engines.engine import Decoder, Engine
from neuralchat_lite.errors import ConfigError, visible
from neuralchat_lite.families.architecture import Architecture
from neuralchat_lite.files.folder import given_folder, require_empty
from neuralchat_lite.files.names import SIDECARS
from neuralchat_lite.files.progress_bar import ProgressOption, shown
from neuralchat_lite.generation.calibration_texts import CalibrationOption, texts_of, tokenized
from neuralchat_lite.generation.conversation import Conversation
from neuralchat_lite.generation.defaults import recommended
from neuralchat_lite.generation.loop import fold
from neuralchat_lite.generation.loop import stream as stream_sequence
from neuralchat_lite.generation.options import GenerationKeywords, GenerationOptions
from neuralchat_lite.generation.prompt import PromptInput, encode_prompt
from neuralchat_lite.generation.sequence import Reply, Sequence
from neuralchat_lite.generation.stream import Stream
from neuralchat_lite.generation.turn_ends import turn_ends
from neuralchat_lite.kernels.leaving import at_work
from neuralchat_lite.loading import (
    Adapters,
    adapters_of_quantized,
    checked_root,
    config_for,
    find,
    open_plan,
    open_with_tokenizer,
    options_of,
    plan_loading,
)
from neuralchat_lite.packed.cache import cached
from neuralchat_lite.packed.export import export_model
from neuralchat_lite.packed.format import open_packed
from neuralchat_lite.packed.manifest import import_losses
from neuralchat_lite.packed.quantize import quantize_checkpoint
from neuralchat_lite.packed.save import save_copy
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.shortages import shortages

QuantizationOptions = WeightOnlyQuantConfig | Mapping[str, Any] | str | None


@dataclass(frozen=True, repr=False)
class Model:
    """A model that is ready to generate text. Made by `load`.

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

    def __repr__(self) -> str:
        runs = self.engine.describe()
        weights = "unquantized" if self.config is None else self.config.short_name
        return (
            f"<Model {visible(self.folder.name)}: {weights} weights, "
            f"{runs['compute_dtype']} compute, engine {runs['engine']}>"
        )

    def __copy__(self) -> Model:
        return replace(self)  # the weights are shared anyway

    def __getstate__(self) -> NoReturn:
        """Asked for by pickle, such as for an argument of another process, and by deepcopy."""
        raise ConfigError(
            f"the model cannot be pickled or deeply copied: pass its folder {self.folder} to the "
            "other process, and call load(folder) there, which maps the same weights; threads can "
            "share one model"
        )

    @property
    def decoder(self) -> Decoder:
        return self.engine.decoder

    @property
    def architecture(self) -> Architecture:
        return self.decoder.architecture

    def generate(self, prompt: PromptInput, **options: Unpack[GenerationKeywords]) -> Reply:
        """Answer a prompt: `stream`, joined."""
        return fold(self.stream(prompt, **options))

    @shortages()
    @at_work()
    def stream(self, prompt: PromptInput, **options: Unpack[GenerationKeywords]) -> Stream:
        """Answer a prompt token by token; `cancel` of the stream ends it, from any thread.

        prompt: a text, a list of {"role", "content"} messages, or token ids (see
            `generation.prompt.encode_prompt`)
        options: those of `GenerationOptions`
        Raises PromptError or ConfigError at once, before the first piece is asked for.
        """
        settings = GenerationOptions.of(options)
        encoded = encode_prompt(
            prompt, self.tokenizer, self.architecture.vocab_size, self.decoder.context_length
        )
        return stream_sequence(
            Sequence(self.decoder, self.tokenizer, encoded, settings, load_s=self.load_s)
        )

    def conversation(
        self, system: str | None = None, **options: Unpack[GenerationKeywords]
    ) -> Conversation:
        """A conversation of several turns, which keeps what was said in its key/value cache."""
        return Conversation(self.decoder, self.tokenizer, system, **options)

    def report(self) -> dict[str, Any]:
        """What runs, and why: engine, threads, precisions, sizes (bytes), times (seconds).

        embedding, embedding_bytes: the type of its numbers, and its size; 0 where it is the head's
            matrix too
        import_losses: what putting codes of another format into ours has lost: for each matrix the
            squared error, as a part of the sum of squares; those that are not named are exact
        generation_config_not_used: what the model's generation_config.json recommends about
            choosing tokens. `generate` and `stream` do not use it; pass it as options.
        """
        return {
            "folder": str(self.folder),
            "model_type": self.architecture.model_type,
            "weights": self.config.to_dict() if self.config else "as in the checkpoint",
            "adapters": list(self.adapters),
            "chat_template": "the model's own" if self.tokenizer.chat_template else "neural-chat's",
            "turn_ends": self.turn_ends(),
            "import_losses": import_losses(self.folder),
            "context_length": self.decoder.context_length,
            "generation_config_not_used": recommended(self.folder),
            "load_s": self.load_s,
            **self.engine.describe(),
        }

    def turn_ends(self) -> list[dict[str, Any]]:
        """The tokens that end an answer to messages, and which files name each."""
        size = self.architecture.vocab_size
        return [
            {
                "id": index,
                "token": self.tokenizer.convert_ids_to_tokens(index) if index < size else None,
                "from": sources,
            }
            for index, sources in sorted(turn_ends(self.tokenizer, self.architecture).items())
        ]

    def close(self) -> None:
        """End the process of an engine that has one of its own; the model answers no more.

        Models that nobody holds are closed too.
        """
        self.engine.close()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Copy the quantized model to a folder that stands alone; `load` maps it.

        An earlier copy there, also the model's own folder, is replaced; other files stay. A
        tokenizer may be saved there too, before or after. Raises ConfigError when the model is
        not quantized, CacheError when the folder holds another model or cannot be written.
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
        return save_copy(self.folder, self.config, given_folder(folder, "the folder to save to"))


@shortages()
@at_work()
def load(
    model: str | os.PathLike[str] | Resolved,
    quantization_config: QuantizationOptions = None,
    *,
    adapters: Adapters | None = (),
    engine: str = NATIVE,
    calibration: CalibrationOption = None,
    compute_dtype: str | torch.dtype | None = None,
    default_compute_dtype: str | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    context_length: int | None = None,
    kv_cache_dtype: str | torch.dtype | None = None,
    threads: int | None = None,
    progress: ProgressOption = None,
) -> Model:
    """Load a model, quantizing it first unless that was done before.

    model: a folder with a Hugging Face checkpoint, a quantized folder, a GGUF file, or a hub name
    quantization_config: how to quantize (default: int4, groups of 32), a dictionary of some of
        its options, or a weight type alone ("int4", "int8"); must agree with what a quantized
        folder holds, except for compute_dtype
    adapters: PEFT LoRA folders or hub names, merged into a checkpoint in this order before it is
        quantized; the last tokenizer and chat template among them replace the checkpoint's
    engine: "native"; or, as a reference, "torch" (transformers in bf16 or fp32), "ipex" (bf16, fp32
        or its own weight-only quantization) or "itrex" (its own int4 and int8) run a checkpoint;
        the last two in an environment that `neuralchat-lite engines setup` makes
    calibration: texts for an algorithm that looks at activations: a file (text, or JSONL with
        "text" or "messages"), a list of texts, or a dictionary {"file", "samples", "length",
        "seed"}; see docs/how-to/calibrate.md
    compute_dtype: precision of the activations, instead of the configuration's
    default_compute_dtype: of a checkpoint whose configuration names none; a quantized folder names
        the one that it was written with. The command line gives "auto".
    dtype: "fp32" or "bf16" runs the checkpoint's own weights, not quantized, computing in it
    revision: of the model's hub name
    token: for hub names
    cache_dir: where quantized models are kept, instead of the default cache
    context_length: positions to allow; the model's own default when None
    kv_cache_dtype: of keys and values: "bf16", "fp32", or "int8" with a scale for each head and
        position, which halves the memory; fp32 when None and the activations are fp32, else bf16
    threads: of the operations, in the whole process; physical cores when None
    progress: by default a bar while quantizing, on a terminal or in a notebook, and elsewhere a
        line of the log (INFO) for each stage; False for neither, or a function that is called with
        each step (see `files.progress.Progress`)

    Raises ConfigError, CheckpointError, UnsupportedModelError, CacheError, HubError, EngineError
    or ResourceError.
    """
    start = time.perf_counter()
    planned = plan_loading(
        model,
        quantization_config,
        adapters=adapters,
        engine=engine,
        compute_dtype=compute_dtype,
        default_compute_dtype=default_compute_dtype,
        calibration=calibration,
        dtype=dtype,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        context_length=context_length,
        kv_cache_dtype=kv_cache_dtype,
        threads=threads,
    )
    with shown(progress) as step:
        opened = open_plan(planned, step)
    load_s = time.perf_counter() - start
    return Model(
        opened.engine, opened.tokenizer, opened.folder, opened.config, load_s, opened.adapters
    )


@shortages()
@at_work()
def quantize(
    model: str | os.PathLike[str],
    quantization_config: QuantizationOptions = None,
    output: str | os.PathLike[str] | None = None,
    *,
    adapters: Adapters | None = (),
    calibration: CalibrationOption = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: ProgressOption = None,
) -> Path:
    """Quantize a checkpoint into `output`, a new folder that stands alone, or into the cache.

    adapters: merged first, as in `load`
    calibration: as in `load`
    progress: as in `load`

    Returns the quantized folder. In the cache a model has no compute_dtype: `load` chooses it.
    Raises what `load` raises, and CacheError when `output` is not empty or cannot be written.
    """
    asked = options_of(quantization_config)
    WeightOnlyQuantConfig(**(asked or {}))  # before a download
    texts = texts_of(calibration)
    out = None if output is None else given_folder(output, "output")
    if out is not None:
        require_empty(out)  # before a download
    found, tuned = find(model, adapters, revision, token)
    if found.packed:
        raise ConfigError(f"{found.folder} is quantized already: load it, or copy it as it is")
    root = checked_root(cache_dir)
    with shown(progress) as step:
        source, tokenizer = open_with_tokenizer(found, tuned)
        config = config_for(source, asked, found.folder)
        samples = tokenized(texts, tokenizer, source.architecture)
        if out is None:
            origin = found.folder
            return cached(
                source, config, calibration=samples, root=root, progress=step, origin=origin
            )
        return quantize_checkpoint(source, config, out, calibration=samples, progress=step)


@shortages()
@at_work()
def merge(
    model: str | os.PathLike[str],
    adapters: Adapters,
    output: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    progress: ProgressOption = None,
) -> Path:
    """Merge PEFT LoRA adapters into a checkpoint, in order, and write it to the new folder
    `output` in the layout of transformers; returns it.

    Sums are in fp32, rounded once to the checkpoint's dtype. Raises what `quantize` raises.
    """
    if not adapters:
        raise ConfigError("merge needs at least one adapter, got none: give a folder or a hub name")
    out = given_folder(output, "output")
    require_empty(out)  # before a download
    found, tuned = find(model, adapters, revision, token)
    if found.packed:
        raise adapters_of_quantized(found.folder)
    with shown(progress) as step:
        source, _ = open_with_tokenizer(found, tuned)
        return write_checkpoint(source, out, step)


@shortages()
@at_work()
def export(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    type: str | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    progress: ProgressOption = None,
) -> Path:
    """Write a model for other programs; returns `output`.

    model: a quantized folder, whose codes are written as they are, or a checkpoint
    output: a new GGUF file, or a new folder
    type: None for a GGUF file, for llama.cpp, with the codes of a quantized folder; of a
        checkpoint's matrices there: "q8_0" (None), "q4_0" or "q4_1"; the embedding and the head
        are Q8_0. "gptq" or "compressed-tensors" for a folder of that format with the codes of a
        quantized folder

    Raises what `load` raises, ConfigError for codes that the format does not hold exactly.
    """
    out = given_folder(output, "output")
    found, _ = find(model, (), revision, token)
    with shown(progress) as step:
        if found.packed:
            packed = open_packed(found.folder)
            files = read_files(open_sidecars(found.folder, SIDECARS))
            return export_model(
                packed, load_tokenizer(found.folder), files, out, type, progress=step
            )
        source, tokenizer = open_with_tokenizer(found)
        return export_model(source, tokenizer, source.sidecars(), out, type, progress=step)


def generate(model: Model, prompt: PromptInput, **options: Unpack[GenerationKeywords]) -> Reply:
    """`model.generate(prompt, **options)`."""
    return model.generate(prompt, **options)


def stream(model: Model, prompt: PromptInput, **options: Unpack[GenerationKeywords]) -> Stream:
    """`model.stream(prompt, **options)`."""
    return model.stream(prompt, **options)
