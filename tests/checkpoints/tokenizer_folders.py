"""Folders whose class or model type contradicts their tokenizer.json; as a script, the texts that
any of them is read wrongly for, as JSON. It runs with any version of transformers."""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from tokenizers import pre_tokenizers, processors  # isort: skip
from tokenizers.trainers import BpeTrainer

STORY = (
    "In 2023 the cat had 1234567 mice.\nIt's  late, WE'LL go home now.\n\n  def f(x): return 89 ",
    "user: what is the capital of France? assistant: Paris. " * 3,
)
CLASSES = (
    None,
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "PreTrainedTokenizerFast",
    "GPT2Tokenizer",
    "GPT2TokenizerFast",
    "Qwen2Tokenizer",
    "TokenizersBackend",
    "NoSuchTokenizer",
)
MODEL_TYPES = (None, "llama", "mistral", "qwen2", "qwen3")
TEXTS = (
    "2023 and 1234567",
    "a  b   c",
    "</s>The cat",
    "<s>user\n2023  mice</s>\n<s>assistant\n",
    "\n\n x\ty ",
    " leading, WE'LL and it's é🙂",
)
CHATML = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
# Of Llama 3: digits in threes, contractions in any case.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def sentencepiece_style() -> Tokenizer:
    """Of Llama 2: text after a special token begins with `▁` again."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(STORY, BpeTrainer(vocab_size=150, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names = [*first, *sorted(learned["vocab"], key=learned["vocab"].get)]
    merges = [tuple(pair) for pair in learned["merges"]]
    made = Tokenizer(
        models.BPE(
            {name: i for i, name in enumerate(names)},
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return with_special(made, normalized=False)


def byte_level_style() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        STORY,
        BpeTrainer(
            vocab_size=400,
            show_progress=False,
            special_tokens=["<unk>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return with_special(made, normalized=False)


def with_special(made: Tokenizer, normalized: bool) -> Tokenizer:
    made.add_special_tokens(
        [AddedToken(name, special=True, normalized=normalized) for name in ("<unk>", "<s>", "</s>")]
    )
    return made


STYLES = {"sentencepiece": sentencepiece_style, "byte-level": byte_level_style}


def write_folder(
    folder: Path,
    tokenizer: Tokenizer,
    tokenizer_class: str | None = None,
    model_type: str | None = None,
    **settings: Any,
) -> Path:
    """A folder with tokenizer.json, tokenizer_config.json and, with a type, config.json."""
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {} if tokenizer_class is None else {"tokenizer_class": tokenizer_class}
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {**named, **names, "chat_template": CHATML, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if model_type is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def disagreements(read: Any, place: Path) -> list[str]:
    """Where `read(folder)` gives other ids than tokenizer.json."""
    found = []
    for style, make in STYLES.items():
        made = make()
        for number, (name, model_type) in enumerate(itertools.product(CLASSES, MODEL_TYPES)):
            folder = write_folder(place / f"{style}{number}", made, name, model_type)
            tokenizer = read(folder)
            case = f"{style}, {name}, {model_type}"
            for text in TEXTS:
                for special in (True, False):
                    wanted = made.encode(text, add_special_tokens=special).ids
                    ids = list(tokenizer.encode(text, add_special_tokens=special))
                    if ids != wanted:
                        found.append(f"{case}: {text!r}: {ids}, not {wanted}")
            if (tokenizer.eos_token_id, tokenizer.bos_token_id) != (2, 1):
                found.append(f"{case}: end of text is {tokenizer.eos_token_id}")
            if tokenizer.chat_template != CHATML:
                found.append(f"{case}: no chat template")
    return found


def check(place: Path) -> dict[str, list[str]]:
    from neuralchat_lite.checkpoints.tokenizer import load_tokenizer
    from neuralchat_lite.transformers.tokenizer import AutoTokenizer

    readers = {"load": load_tokenizer, "AutoTokenizer": AutoTokenizer.from_pretrained}
    found = {}
    for name, read in readers.items():
        (place / name).mkdir()
        found[name] = disagreements(read, place / name)
    return found


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(check(Path(temporary))))
