"""Load models and generate text: the calls that most programs need."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, overload

import torch
from typing_extensions import Unpack

from neuralchat_lite.checkpoints.hub import Resolved
from neuralchat_lite.checkpoints.sidecars import open_sidecars
from neuralchat_lite.checkpoints.source import read_files
from neuralchat_lite.checkpoints.tokenizer import load_tokenizer
from neuralchat_lite.checkpoints.write import write_checkpoint
from neuralchat_lite.engines import NATIVE
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.files.folder import given_folder, require_empty
from neuralchat_lite.files.names import SIDECARS
from neuralchat_lite.files.progress_bar import ProgressOption, shown
from neuralchat_lite.generation.batch import limits_of
from neuralchat_lite.generation.calibration_texts import CalibrationOption, texts_of, tokenized
from neuralchat_lite.generation.options import GenerationKeywords
from neuralchat_lite.generation.prompt import PromptInput
from neuralchat_lite.generation.sequence import Piece, Reply
from neuralchat_lite.generation.several import Prompts
from neuralchat_lite.generation.stream import Stream
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
from neuralchat_lite.model import Model
from neuralchat_lite.packed.cache import cached
from neuralchat_lite.packed.export import export_model
from neuralchat_lite.packed.format import open_packed
from neuralchat_lite.packed.quantize import quantize_checkpoint
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.shortages import shortages

QuantizationOptions = WeightOnlyQuantConfig | Mapping[str, Any] | str | None


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
    kv_memory: int | None = None,
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
    kv_memory: bytes that keys and values may take, of all answers at once and of earlier prompts
        that are remembered; half of the memory that is free when None
    threads: of the operations, in the whole process; physical cores when None
    progress: by default a bar while quantizing, on a terminal or in a notebook, and elsewhere a
        line of the log (INFO) for each stage; False for neither, or a function that is called with
        each step (see `files.progress.Progress`)

    Raises ConfigError, CheckpointError, UnsupportedModelError, CacheError, HubError, EngineError
    or ResourceError.
    """
    start = time.perf_counter()
    limits = limits_of(kv_memory, engine)
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
        opened.engine,
        opened.tokenizer,
        opened.folder,
        opened.config,
        load_s,
        opened.adapters,
        limits,
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


@overload
def generate(  # type: ignore[overload-overlap]  # a text is a sequence of texts too
    model: Model,
    prompt: PromptInput,
    *,
    progress: ProgressOption = None,
    **options: Unpack[GenerationKeywords],
) -> Reply: ...


@overload
def generate(
    model: Model,
    prompt: Prompts,
    *,
    progress: ProgressOption = None,
    **options: Unpack[GenerationKeywords],
) -> list[Reply]: ...


def generate(
    model: Model,
    prompt: Any,
    *,
    progress: ProgressOption = None,
    **options: Unpack[GenerationKeywords],
) -> Any:
    """`model.generate(prompt, **options)`."""
    return model.generate(prompt, progress=progress, **options)


@overload
def stream(  # type: ignore[overload-overlap]
    model: Model, prompt: PromptInput, **options: Unpack[GenerationKeywords]
) -> Stream: ...


@overload
def stream(
    model: Model, prompt: Prompts, **options: Unpack[GenerationKeywords]
) -> Stream[tuple[int, Piece]]: ...


def stream(model: Model, prompt: Any, **options: Unpack[GenerationKeywords]) -> Any:
    """`model.stream(prompt, **options)`."""
    return model.stream(prompt, **options)
