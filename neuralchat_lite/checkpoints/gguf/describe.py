"""The metadata of a GGUF file from a model's configuration and tokenizer: the inverse of `metadata`
and `vocabulary`, which read it back before a byte of weights is written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tokenizers

from neuralchat_lite.checkpoints.gguf.metadata import ARCHITECTURES
from neuralchat_lite.checkpoints.gguf.pretokenizers import PRETOKENIZERS
from neuralchat_lite.checkpoints.gguf.values import Metadata
from neuralchat_lite.checkpoints.gguf.vocabulary import (
    CONTROL,
    NAMED,
    PREFIX,
    TEMPLATE,
    USER_DEFINED,
    read_vocabulary,
    tokenizer_files,
)
from neuralchat_lite.checkpoints.tokenizer import Tokenizer
from neuralchat_lite.checkpoints.tokenizer_json import PROBES
from neuralchat_lite.errors import CheckpointError, UnsupportedModelError
from neuralchat_lite.families.architecture import Architecture
from neuralchat_lite.values import shown

NORMAL, UNUSED, BYTE = 1, 5, 6
# model_type -> general.architecture. Mistral is a Llama there.
WRITTEN = {kind.model_type: name for name, kind in ARCHITECTURES.items()} | {"mistral": "llama"}
REMEDY = "export is not available for this model"


def describe_architecture(architecture: Architecture, name: str) -> dict[str, Any]:
    """The metadata about sizes. Raises UnsupportedModelError."""
    kind = WRITTEN.get(architecture.model_type)
    if kind is None:
        raise UnsupportedModelError(
            f"model_type {shown(architecture.model_type)} has no name in GGUF here, expected one "
            f"of {sorted(WRITTEN)}: {REMEDY}"
        )
    # llama.cpp sees all positions, so the context ends where a window would begin to count.
    windows = [window for window in architecture.windows if window is not None]
    values = {
        "context_length": min([architecture.max_positions, *windows]),
        "embedding_length": architecture.hidden_size,
        "block_count": architecture.layers,
        "feed_forward_length": architecture.intermediate_size,
        "vocab_size": architecture.vocab_size,
        "attention.head_count": architecture.heads,
        "attention.head_count_kv": architecture.kv_heads,
        "attention.key_length": architecture.head_dim,
        "attention.value_length": architecture.head_dim,
        "attention.layer_norm_rms_epsilon": float(architecture.norm_eps),
        "rope.dimension_count": architecture.head_dim,
        "rope.freq_base": float(architecture.rope["rope_theta"]),
        **describe_rope(architecture.rope),
    }
    return {
        "general.architecture": kind,
        "general.name": name,
        "general.type": "model",
        **{f"{kind}.{key}": value for key, value in values.items()},
    }


def describe_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    kind = rope["rope_type"]
    if kind in ("default", "llama3"):  # the factors of Llama 3 are a tensor
        return {}
    found: dict[str, Any] = {
        "rope.scaling.type": kind,
        "rope.scaling.factor": float(rope["factor"]),
    }
    if kind == "yarn":
        plain: dict[str, Any] = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
        plain |= dict.fromkeys(("attention_factor", "mscale", "mscale_all_dim"))
        other = sorted(name for name, value in plain.items() if rope[name] != value)
        if other:
            raise UnsupportedModelError(
                f"yarn with {', '.join(f'{each} {rope[each]}' for each in other)} has no keys in "
                f"GGUF: {REMEDY}"
            )
        found["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    return found


def rope_factors(architecture: Architecture) -> Any:
    """[head_dim / 2] fp32 factors of Llama 3; None for other scalings."""
    rope, dim = architecture.rope, architecture.head_dim
    if rope["rope_type"] != "llama3":
        return None
    frequencies = rope["rope_theta"] ** -(np.arange(0, dim, 2) / dim)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - share) / rope["factor"] + share)).astype(np.float32)


# ---- the tokenizer ----


def describe_tokenizer(
    data: bytes, tokenizer: Tokenizer, architecture: Architecture, file: str
) -> dict[str, Any]:
    """The metadata about tokens.

    data: tokenizer.json; tokenizer: what was loaded from it; file: for errors
    Raises UnsupportedModelError when no metadata give the ids of tokenizer.json.
    """
    backend = tokenizers.Tokenizer.from_str(data.decode())
    backend.no_truncation()
    backend.no_padding()
    common = common_keys(backend, tokenizer, architecture)
    for more in candidates(json.loads(data), backend, common):
        values = {**common, **more}
        if gives_ids_of(backend, values, file):
            return values
    raise UnsupportedModelError(
        f"{file}: its tokenizer.json has ids that no tokenizer of llama.cpp known here gives: "
        f"{REMEDY}"
    )


def common_keys(backend: Any, tokenizer: Tokenizer, architecture: Architecture) -> dict[str, Any]:
    ids = {index: token for token, index in backend.get_vocab(with_added_tokens=True).items()}
    size = max(architecture.vocab_size, len(ids))
    added = backend.get_added_tokens_decoder()
    tokens, types = [], []
    for index in range(size):
        tokens.append(ids.get(index, f"[PAD{index}]"))
        special = added.get(index)
        kind = UNUSED if index not in ids else NORMAL
        if special is not None:
            kind = CONTROL if special.special else USER_DEFINED
        types.append(kind)
    around = backend.encode("", add_special_tokens=True).ids
    found: dict[str, Any] = {
        f"{PREFIX}.tokens": tokens,
        f"{PREFIX}.token_type": types,
    }
    given = tokenizer.special_tokens_map
    for name, key in NAMED.items():
        token = given.get(f"{name}_token")
        if token is not None:
            found[f"{PREFIX}.{key}"] = tokenizer.convert_tokens_to_ids(str(token))
    found.setdefault(f"{PREFIX}.{NAMED['eos']}", next(iter(architecture.eos_ids), None))
    found.setdefault(f"{PREFIX}.{NAMED['bos']}", architecture.bos_id)
    found = {key: value for key, value in found.items() if value is not None}
    first, last = found.get(f"{PREFIX}.{NAMED['bos']}"), found.get(f"{PREFIX}.{NAMED['eos']}")
    adds_bos = bool(around) and around[0] == first
    found[f"{PREFIX}.add_bos_token"] = adds_bos
    found[f"{PREFIX}.add_eos_token"] = around[adds_bos:] == [last]
    if isinstance(tokenizer.chat_template, str):
        found[TEMPLATE] = tokenizer.chat_template
    return found


def candidates(
    parsed: Mapping[str, Any], backend: Any, common: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """What tokenizer.json may be in llama.cpp's words."""
    model = parsed.get("model") or {}
    if model.get("type") != "BPE":
        return
    merges = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
    if not model.get("byte_fallback"):
        for name in splitting_alike(backend):
            yield {f"{PREFIX}.model": "gpt2", f"{PREFIX}.pre": name, f"{PREFIX}.merges": merges}
        return
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", "", 1), rank)
    tokens = common[f"{PREFIX}.tokens"]
    types = [
        BYTE if kind == NORMAL and len(token) == 6 and token.startswith("<0x") else kind
        for token, kind in zip(tokens, common[f"{PREFIX}.token_type"], strict=True)
    ]
    for prefix in (True, False):
        yield {
            f"{PREFIX}.model": "llama",
            f"{PREFIX}.pre": "default",
            f"{PREFIX}.scores": [-float(ranks.get(token, len(ranks))) for token in tokens],
            f"{PREFIX}.token_type": types,
            f"{PREFIX}.add_space_prefix": prefix,
        }


def splitting_alike(backend: Any) -> Iterator[str]:
    """Names of pre-tokenizers that split the probes as a tokenizer does."""
    if backend.pre_tokenizer is None:
        return
    seen = []
    for name, rules in PRETOKENIZERS.items():
        if rules in seen:
            continue
        seen.append(rules)
        built = rules.build()
        if all(
            built.pre_tokenize_str(text) == backend.pre_tokenizer.pre_tokenize_str(text)
            for text in PROBES
        ):
            yield name


def gives_ids_of(backend: Any, values: Mapping[str, Any], file: str) -> bool:
    """Whether metadata give the ids of a tokenizer, on texts that tell tokenizers apart."""
    try:
        made = tokenizer_files(read_vocabulary(Metadata(file, values)), 1)["tokenizer.json"]
    except CheckpointError:
        return False
    read = tokenizers.Tokenizer.from_str(made.decode())
    special = [token.content for token in backend.get_added_tokens_decoder().values()][:4]
    texts = [*PROBES, *(f"a{token}b {token} 1\n" for token in special)]
    return all(
        read.encode(text, add_special_tokens=around).ids
        == backend.encode(text, add_special_tokens=around).ids
        for text in texts
        for around in (False, True)
    )
