"""Engine configurations to evaluate, each opened as a model that answers with logits."""

from __future__ import annotations

from typing import Any

import neuralchat_lite as ncl
from benchmarks.accuracy.rivals import open_rival
from benchmarks.engines.table import ENGINES, Variant, find_variants, scored_variants
from benchmarks.models.model import model_name
from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.checkpoints.hub import resolve
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.files.digests import digest_of

# Evaluated when none are named, as far as they are installed: as in the full latency run.
DEFAULT = (
    "neuralchat_lite", "transformers:bf16", "ipex:bf16", "itrex:int4-int8", "llamacpp:Q4_0",
    "llamacpp:Q8_0", "openvino", "onnxruntime", "torchao:int4", "ctranslate2",
)  # fmt: skip
# Of a model's report, what says nothing about its scores.
NO_CONDITIONS = ("folder", "model_type", "chat_template", "turn_ends", "load_s")
# The next-token distributions of the others are compared with those of this one.
[REFERENCE] = find_variants(["neuralchat_lite:fp32"], scored_variants())


def chosen(names: str) -> list[Variant]:
    """The variants that a text names: "engine:variant" or "engine", separated by commas.

    Raises ConfigError that lists the choices.
    """
    parts = [part.strip() for part in names.split(",")]
    found = find_variants(filter(None, parts), scored_variants())
    if not found:
        raise ConfigError("no variant is named: give --variants, or leave it out")
    return found


def model_digest(model: str) -> str:
    """sha256 of all that a checkpoint holds: weights, config, tokenizer."""
    found = resolve(model, None, None)
    return digest_of(open_checkpoint(found.folder, found.hub).identity())


def open_variant(
    variant: Variant, model: str, sha256: str, context_length: int | None
) -> ncl.Model:
    """The model, opened by the library or in a worker. Raises what `neuralchat_lite.load` raises.

    sha256: of all that the checkpoint holds
    """
    if ENGINES[variant.engine].loaded is None:
        folder = resolve(model, None, None).folder
        return open_rival(variant, folder, model_name(model), sha256, context_length)
    return ncl.load(model, context_length=context_length, **variant.options)


def conditions_of(model: ncl.Model) -> dict[str, Any]:
    """How this model computes: engine, precision, kernels, threads, versions, flags."""
    return {name: value for name, value in model.report().items() if name not in NO_CONDITIONS}
