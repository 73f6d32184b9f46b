"""How texts are split before merges, by the name in `tokenizer.ggml.pre`.

A GGUF file has the vocabulary and merges of a byte-level BPE, and of the rest of tokenizer.json a
name alone. What a name means is a convention of llama.cpp (src/llama-vocab.cpp); these are the
names whose rules give its ids, as `tests/checkpoints/test_gguf_vocabularies.py` measures. Another
name is one row here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, pre_tokenizers

from neuralchat_lite.errors import UnsupportedModelError
from neuralchat_lite.values import shown


@dataclass(frozen=True)
class PreTokenizer:
    """Rules of one name.

    splits: regular expressions, applied one after the other to what the earlier ones left; what
        one matches is a piece, and so is what lies between
    whole_words: a piece that is a token itself is that token, whatever merges would give
    adds_bos: the default of "tokenizer.ggml.add_bos_token"
    """

    splits: tuple[str, ...]
    whole_words: bool = False
    adds_bos: bool = False

    def build(self) -> Any:
        """The same for the `tokenizers` library; bytes are then letters, as in GPT-2."""
        steps = [pre_tokenizers.Split(Regex(split), "isolated") for split in self.splits]
        as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*steps, as_bytes])


CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"


def gpt4(digits: str, letters: str = r"\p{L}", stop: str = r"[\r\n]*") -> str:
    """The expression of GPT-4 and its descendants.

    digits: a run of numbers, letters: what a word consists of, stop: what may follow punctuation
    """
    marks = r"\p{M}" if r"\p{M}" in letters else ""
    return (
        rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}"
        rf"| ?[^\s\p{{L}}{marks}\p{{N}}]+{stop}|{SPACES}"
    )


# Words of upper and of lower case, the case of the rest not counting.
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED_WORDS = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
)
# DeepSeek's letters: those with a case, without scripts that an older Unicode had none in.
CASED = (
    r"[\p{Lu}\p{Ll}\p{Lt}&&[^\x{560}-\x{588}\x{10c7}-\x{10ff}\x{1c80}-\x{1c8f}\x{2d00}-\x{2d2f}"
    r"\x{a790}-\x{a7ff}\x{ab30}-\x{ab6f}\x{10570}-\x{105bf}\x{10d50}-\x{10d8f}\x{16e40}-\x{16eff}"
    r"\x{1d400}-\x{1d7ff}\x{1df00}-\x{1dfff}]]"
)
WIDE_MARKS = r"[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-\x{3002}]"
HAN_TO_HANGUL = r"[\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]+"
HAN_AND_KANA = r"[\x{4e00}-\x{9fa5}\x{3040}-\x{30ff}]+"
ASCII_MARKS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"

WHOLE = PreTokenizer((GPT2,))
DIGITS_FIRST = PreTokenizer((r"\p{N}", GPT2))
LLAMA3 = PreTokenizer((gpt4(r"\p{N}{1,3}"),), whole_words=True, adds_bos=True)
QWEN2 = PreTokenizer((gpt4(r"\p{N}"),))
DEEPSEEK3 = PreTokenizer(
    (
        r"\p{N}{1,3}",
        HAN_AND_KANA,
        rf"{ASCII_MARKS}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
        rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{SPACES}",
    )
)
# Name -> its rules.
PRETOKENIZERS: dict[str, PreTokenizer] = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral"), LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), PreTokenizer((gpt4(r"\p{N}{1,3}"),))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan"), QWEN2),
    "qwen35": PreTokenizer((gpt4(r"\p{N}", r"[\p{L}\p{M}]"),)),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4"), WHOLE),
    **dict.fromkeys(
        ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"),
        DIGITS_FIRST,
    ),
    "tekken": PreTokenizer((CASED_WORDS,), whole_words=True, adds_bos=True),
    "deepseek-llm": PreTokenizer(
        (
            "[\r\n]", rf"\s?{CASED}+", rf"\s?{WIDE_MARKS}+", r"\s+$", HAN_TO_HANGUL, r"\p{N}",
        )
    ),
    "deepseek-coder": PreTokenizer(
        ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN_TO_HANGUL, r"\p{N}")
    ),
    "deepseek-v3": DEEPSEEK3,
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")),
    "default": PreTokenizer(
        (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")
    ),
}  # fmt: skip


def pretokenizer_of(name: object, file: str) -> PreTokenizer:
    """Raises UnsupportedModelError for a name without a row."""
    found = PRETOKENIZERS.get(str(name))
    if found is None:
        raise UnsupportedModelError(
            f"{file}: tokenizer.ggml.pre {shown(name)} is not supported: expected one of "
            f"{', '.join(sorted(PRETOKENIZERS))}; use the original checkpoint"
        )
    return found
