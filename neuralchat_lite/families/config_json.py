"""Reading config.json into an Architecture. Every value is checked.

A key that is missing or spelled in two ways means the same as in transformers.
"""

from __future__ import annotations

import logging
from pathlib import Path

from neuralchat_lite.errors import CheckpointError, UnsupportedModelError
from neuralchat_lite.families.architecture import Architecture, Sizes
from neuralchat_lite.families.config_values import (
    Config,
    flag,
    number,
    positive,
    token_id,
    token_ids,
)
from neuralchat_lite.families.family import Family
from neuralchat_lite.families.rope_parameters import rope_parameters
from neuralchat_lite.families.table import family_of
from neuralchat_lite.files.json_file import read_json, read_optional_json
from neuralchat_lite.values import shown

log = logging.getLogger(__name__)

GENERATION = "generation_config.json"
# As many as the header of a safetensors file has room for; the deepest model has 126. A mistyped
# number is refused before lists are made of it.
MOST_LAYERS = 1000
# Who quantizes says so under one of these: MLX under the second, compressed-tensors once did under
# the third.
QUANTIZED_KEYS = ("quantization_config", "quantization", "compression_config")


def read_architecture(folder: Path, config: Config | None = None) -> Architecture:
    """Read `config.json` (and the end-of-text ids of `generation_config.json`) of a model folder.

    config: the contents of config.json, if it was read already
    Raises CheckpointError when a file is missing or a value invalid, UnsupportedModelError
    when the model is not supported.
    """
    config = read_json(folder / "config.json") if config is None else config
    generation = read_optional_json(folder / GENERATION)
    return parse_architecture(config, generation)


def parse_architecture(config: Config, generation: Config | None = None) -> Architecture:
    """Turn the dictionaries of config.json and generation_config.json into an Architecture.

    Raises as `read_architecture` does.
    """
    model_type = config.get("model_type")
    family = family_of(model_type)
    refuse_quantized(config)
    sizes = read_sizes(config, family)
    max_positions = positive(config, "max_position_embeddings", family.max_positions)
    eos = end_ids(config, "config.json", sizes.vocab_size)
    generation_eos = end_ids(generation or {}, GENERATION, sizes.vocab_size)
    return Architecture(
        **vars(sizes),
        model_type=str(model_type),
        names=family.names,
        block=family.block(config, sizes),
        norm_eps=number(config, "rms_norm_eps", 1e-6),
        max_positions=max_positions,
        windows=family.windows(config, sizes.layers),
        tied=flag(config, "tie_word_embeddings"),
        rope=rope_parameters(config, max_positions),
        eos_ids=generation_eos or eos,
        bos_id=token_id(config, "bos_token_id"),
        stated_eos={"config.json": eos, GENERATION: generation_eos},
    )


def end_ids(config: Config, file: str, vocab_size: int) -> tuple[int, ...]:
    """The ids in a file that end a text. One that the model cannot choose is left out with a
    warning: an answer would not end there."""
    ids = token_ids(config, "eos_token_id", file)
    beyond = [each for each in ids if each >= vocab_size]
    if beyond:
        log.warning(
            "%s: eos_token_id names %s, but the vocabulary has %s tokens: ignored, answers do not "
            "end there; correct the file if they should",
            file,
            shown(beyond),
            vocab_size,
        )
    return tuple(each for each in ids if each < vocab_size)


def refuse_quantized(config: Config) -> None:
    for key in QUANTIZED_KEYS:
        method = config.get(key)
        if method is not None:
            name = method.get("quant_method", method) if isinstance(method, dict) else method
            raise UnsupportedModelError(
                f"config.json: the checkpoint is already quantized ({key} {shown(name)}): "
                "use the original bf16, fp16 or fp32 checkpoint"
            )


def read_sizes(config: Config, family: Family) -> Sizes:
    layers = positive(config, "num_hidden_layers", largest=MOST_LAYERS)
    heads = positive(config, "num_attention_heads")
    hidden = positive(config, "hidden_size")
    # A null is not a missing key here: in every family it means as many as heads.
    default = family.kv_heads if "num_key_value_heads" not in config else None
    kv_heads = positive(config, "num_key_value_heads", default or heads)
    head_dim = positive(config, "head_dim", family.head_dim or max(1, hidden // heads))
    if heads % kv_heads:
        raise CheckpointError(
            f"config.json: num_attention_heads {heads} is not a multiple of num_key_value_heads "
            f"{kv_heads}: download the file again"
        )
    if head_dim % 2:
        raise UnsupportedModelError(
            f"head_dim {head_dim} is odd, and rotary embedding pairs dimensions: "
            "use a model with an even one"
        )
    return Sizes(
        vocab_size=positive(config, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=positive(config, "intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
    )
