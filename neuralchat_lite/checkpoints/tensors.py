"""What the names of a checkpoint's tensors tell, before they are matched with the architecture:
wrappers of training are taken off, tensors of quantizers and foreign prefixes are refused."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from neuralchat_lite.errors import CheckpointError, UnsupportedModelError

log = logging.getLogger(__name__)

# Parts of names that training leaves, and who does. The tensors are the model's own: the wrapper
# is another name for the same module, so it is taken off.
WRAPPERS = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
OUTER_WRAPPERS = {"module": "DataParallel"}  # at the beginning only: it is an ordinary word

# Endings of the tensors in which others keep codes and scales.
QUANTIZED = {
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".g_idx": "GPTQ",
    ".scales": "MLX",
    ".weight_packed": "compressed-tensors",
    ".weight_scale": "compressed-tensors or FP8",
    ".weight_scale_inv": "FP8",
    ".weight.absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".codes": "AQLM or HQQ",
}

# Prefixes of whole models, and what to do. Longer ones first.
PREFIXES = {
    "base_model.model.": "the model is wrapped by PEFT: save it after model = "
    "model.merge_and_unload(), or give the base as the model and the adapter in adapters=[...]",
    "model.language_model.": "it is the language part of a multimodal model: use a text-only model",
    "language_model.": "it is the language part of a multimodal model: use a text-only model",
}
# What every supported decoder has, after its prefix.
LANDMARK = re.compile(r"(?P<prefix>.*?)(embed_tokens\.|layers\.\d+\.(self_attn|mlp)\.)")

Place = TypeVar("Place")


def unwrapped(name: str) -> tuple[str, list[str]]:
    """A tensor's name without the wrappers of training, and those that it had."""
    parts = name.split(".")
    found = []
    while parts[0] in OUTER_WRAPPERS or parts[0] in WRAPPERS:
        found.append(parts.pop(0))
        if not parts:
            return name, []
    found += [part for part in parts if part in WRAPPERS]
    return ".".join(part for part in parts if part not in WRAPPERS), found


def without_wrappers(
    found: Mapping[str, Place], folder: Path
) -> tuple[dict[str, Place], tuple[str, ...]]:
    """The same tensors by their names without wrappers, and the wrappers, with one warning.

    Raises CheckpointError when two tensors have one name then.
    """
    plain: dict[str, Place] = {}
    wrappers: dict[str, None] = {}
    for name, place in found.items():
        bare, taken = unwrapped(name)
        if bare in plain:
            raise CheckpointError(f"{folder} has {bare} twice, once as {name}: keep one of them")
        plain[bare] = place
        wrappers |= dict.fromkeys(taken)
    if wrappers:
        log.warning(
            "%s: names of tensors have %s, which %s adds in training: read without",
            folder,
            ", ".join(f"{name!r}" for name in wrappers),
            ", ".join({**WRAPPERS, **OUTER_WRAPPERS}[name] for name in wrappers),
        )
    return plain, tuple(wrappers)


def refuse_foreign_tensors(names: Iterable[str], base: str, folder: Path) -> None:
    """Raise UnsupportedModelError for codes of a quantizer, and where all names begin with what is
    neither the family's `base` nor nothing, as in a model without a head."""
    prefixes = set()
    for name in names:
        for ending, who in QUANTIZED.items():
            if name.endswith(ending):
                raise UnsupportedModelError(
                    f"{folder} has {name}, as weights quantized by {who} have: use the original "
                    "bf16, fp16 or fp32 checkpoint"
                )
        if landmark := LANDMARK.match(name):
            prefixes.add(landmark["prefix"])
    if prefixes and not prefixes & {base, ""}:
        prefix = max(prefixes, key=len)
        known = next((each for each in PREFIXES if prefix.startswith(each)), None)
        remedy = (
            "rename the tensors without it (safetensors.torch.load_file and save_file)"
            if known is None
            else PREFIXES[known]
        )
        raise UnsupportedModelError(
            f"{folder}: names of tensors begin with {known or prefix!r}, expected {base!r} or "
            f"nothing: {remedy}"
        )
