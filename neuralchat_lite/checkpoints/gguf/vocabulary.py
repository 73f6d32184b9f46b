"""The tokenizer in a GGUF file's metadata, as the tokenizer.json that makes the same ids.

Texts get the ids that llama.cpp gives them, which differ from those of the original tokenizer.json
where that normalizes characters (NFC in Qwen and Command-R).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from neuralchat_lite.checkpoints.gguf.pretokenizers import pretokenizer_of
from neuralchat_lite.checkpoints.gguf.values import Metadata
from neuralchat_lite.errors import CheckpointError, UnsupportedModelError
from neuralchat_lite.values import shown

log = logging.getLogger(__name__)

PREFIX = "tokenizer.ggml"
TEMPLATE = "tokenizer.chat_template"
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # of llama.cpp's token types, those that texts may name
SPACE = "▁"
# Tokens that end an answer, by the names that llama.cpp knows.
ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|eom_id|>", "<|end_of_text|>",
    "</s>", "<end_of_turn>", "<｜end▁of▁sentence｜>",
)  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """What the metadata says about tokens, checked.

    tokens: by id; types: of each
    named: "bos", "eos", "unk", "pad" -> the token's id, where there is one
    """

    metadata: Metadata
    tokens: list[str]
    types: list[int]
    named: dict[str, int] = field(default_factory=dict)

    @property
    def ids(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.tokens)}

    def merges(self) -> list[tuple[str, str]]:
        """Pairs of tokens. A space divides a pair, and may also begin it."""
        key = f"{PREFIX}.merges"
        found = self.metadata.texts(key)
        if found is None:
            raise self.metadata.wrong(key, "a list of merges")
        pairs = []
        for merge in found:
            place = merge.find(" ", 1)
            if place < 0:
                raise CheckpointError(
                    f"{self.metadata.file}: {key} has {shown(merge)}, expected two tokens with a "
                    "space between: download the file again"
                )
            pairs.append((merge[:place], merge[place + 1 :]))
        return pairs

    def ends(self) -> list[int]:
        """The ids that end an answer: those that are named, and control tokens of ENDS."""
        keys = ("eos_token_id", "eot_token_id", "eom_token_id")
        given = [self.metadata.whole(f"{PREFIX}.{key}") for key in keys]
        ids = self.ids
        by_name = [ids[end] for end in ENDS if end in ids and self.types[ids[end]] == CONTROL]
        known = [each for each in given if each is not None and 0 <= each < len(self.tokens)]
        return list(dict.fromkeys([*known, *by_name]))


NAMED = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "pad": "padding_token_id",
}


def read_vocabulary(metadata: Metadata) -> Vocabulary:
    """Raises CheckpointError where the lists do not fit together."""
    tokens = metadata.texts(f"{PREFIX}.tokens")
    if not tokens:
        raise metadata.wrong(f"{PREFIX}.tokens", "a list of tokens")
    tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]
    if len(set(tokens)) < len(tokens):
        seen: set[str] = set()
        twice = next(token for token in tokens if token in seen or seen.add(token))  # type: ignore[func-returns-value]
        raise CheckpointError(
            f"{metadata.file}: {PREFIX}.tokens has {shown(twice)} twice: download the file again"
        )
    types = metadata.wholes(f"{PREFIX}.token_type") or [1] * len(tokens)
    if len(types) < len(tokens):
        raise metadata.wrong(f"{PREFIX}.token_type", f"a list of {len(tokens)}, one for each token")
    named = {}
    for name, key in NAMED.items():
        index = metadata.whole(f"{PREFIX}.{key}")
        if index is not None and 0 <= index < len(tokens):
            named[name] = index
    return Vocabulary(metadata, tokens, types, named)


# ---- the kinds of tokenizer ----


def byte_level(vocabulary: Vocabulary) -> tuple[Any, bool]:
    """GPT-2's: merges over bytes, within the pieces of a pre-tokenizer."""
    metadata = vocabulary.metadata
    name = metadata.text(f"{PREFIX}.pre")
    if name is None:
        log.warning(
            "%s has no tokenizer.ggml.pre, so texts are split by llama.cpp's default: answers may "
            "be worse than the original checkpoint's",
            metadata.file,
        )
    rules = pretokenizer_of(name or "default", metadata.file)
    model = models.BPE(vocabulary.ids, vocabulary.merges(), ignore_merges=rules.whole_words)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = rules.build()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, rules.adds_bos


def sentencepiece(vocabulary: Vocabulary) -> tuple[Any, bool]:
    """Llama 2's: the merges are all pairs that make a token, the highest score first."""
    scores = vocabulary.metadata.numbers(f"{PREFIX}.scores") or []
    ids = vocabulary.ids
    if len(scores) < len(ids):
        raise vocabulary.metadata.wrong(f"{PREFIX}.scores", f"a list of {len(ids)} numbers")
    pairs = []
    for token, index in ids.items():
        for place in range(1, len(token)):
            left, right = token[:place], token[place:]
            if left in ids and right in ids:
                pairs.append((-scores[index], ids[left], ids[right], left, right))
    pairs.sort()
    merges = [(left, right) for *_, left, right in pairs]
    return with_spaces(vocabulary, merges, vocabulary.metadata.flag(f"{PREFIX}.add_space_prefix"))


def with_spaces(
    vocabulary: Vocabulary, merges: list[tuple[str, str]], prefix: bool | None
) -> tuple[Any, bool]:
    """Merges over characters, with ▁ for a space, and bytes for characters without a token.

    prefix: whether a text begins with a space, also after a special token; None: yes
    """
    unknown = vocabulary.named.get("unk")
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary.ids,
            merges,
            unk_token=None if unknown is None else vocabulary.tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefixed = prefix is not False
    first = [normalizers.Prepend(SPACE)] if prefixed else []
    tokenizer.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", SPACE)])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] * prefixed)])
    return tokenizer, True


def gemma(vocabulary: Vocabulary) -> tuple[Any, bool]:
    """Gemma 4's: merges over characters, in lines."""
    tokenizer, adds_bos = with_spaces(vocabulary, vocabulary.merges(), False)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|\n+"), "isolated")
    return tokenizer, adds_bos


# tokenizer.ggml.model -> the function that gives a tokenizer, and whether it adds a first token by
# default.
MODELS: dict[str, Callable[[Vocabulary], tuple[Any, bool]]] = {
    "gpt2": byte_level,
    "llama": sentencepiece,
    "gemma4": gemma,
}


def tokenizer_files(vocabulary: Vocabulary, max_length: int) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json.

    max_length: the positions of the model
    Raises CheckpointError for a damaged vocabulary, UnsupportedModelError, with the name, for a
    kind of tokenizer that has no row.
    """
    metadata = vocabulary.metadata
    kind = metadata.text(f"{PREFIX}.model")
    build = MODELS.get(str(kind))
    if build is None:
        raise UnsupportedModelError(
            f"{metadata.file}: tokenizer.ggml.model {shown(kind)} is not supported: expected one "
            f"of {', '.join(sorted(MODELS))}; use the original checkpoint"
        )
    try:
        tokenizer, adds_bos = build(vocabulary)
        add_special(tokenizer, vocabulary)
        add_around(tokenizer, vocabulary, adds_bos)
    except CheckpointError:
        raise
    except Exception as error:  # the library raises bare Exception
        why = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{metadata.file}: its tokens and merges make no tokenizer ({why}): download the file "
            "again"
        ) from None
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        **{f"{name}_token": vocabulary.tokens[index] for name, index in vocabulary.named.items()},
    }
    template = metadata.text(TEMPLATE)
    if template is not None:
        settings["chat_template"] = template
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(settings, indent=2).encode(),
    }


def add_special(tokenizer: Any, vocabulary: Vocabulary) -> None:
    """Tokens that are found in a text before anything else. Those of the user's are part of what
    a model writes; the others are special."""
    kinds = {UNKNOWN: True, CONTROL: True, USER_DEFINED: False}
    tokens = [
        AddedToken(token, special=kinds[kind], normalized=False)
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=False)
        if kind in kinds
    ]
    tokenizer.add_tokens([token for token in tokens if not token.special])
    tokenizer.add_special_tokens([token for token in tokens if token.special])


def add_around(tokenizer: Any, vocabulary: Vocabulary, adds_bos: bool) -> None:
    """The tokens before and after every text."""
    given = vocabulary.metadata.flag(f"{PREFIX}.add_bos_token")
    wanted = {
        "bos": adds_bos if given is None else given,
        "eos": vocabulary.metadata.flag(f"{PREFIX}.add_eos_token") is True,
    }
    ids = {
        name: vocabulary.named[name]
        for name, adds in wanted.items()
        if adds and name in vocabulary.named
    }
    if not ids:
        return
    tokens = {name: vocabulary.tokens[index] for name, index in ids.items()}
    before, after = ([tokens[name]] if name in ids else [] for name in ("bos", "eos"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *(f"{each}:1" for each in before), "$B:1", *after],
        special_tokens=[(tokens[name], index) for name, index in ids.items()],
    )
