"""A stand-in for the published small models, made by the tests in a few seconds.

It has the shape of stories260K and comes in a folder with the same files. Its tokenizer is trained
on the story below. Its weights have learned the story by heart, so the likeliest token is likeliest
by far, also when weights are rounded. transformers computes the golden outputs, and the reference
perplexities on weights that are rounded here.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

NAME = "made-here"
CHAPTERS = (
    "Once upon a time, there was a little girl named Lily. She lived in a small house near the "
    "sea with her mother and an old gray cat. Every morning Lily took a blue cup and filled it "
    "with shells from the beach. The cat liked to sleep on the warm stones while she played.",
    "One day, a big dog ran along the sand and stole the cup. It carried the cup far away and hid "
    "it behind three trees. Lily called him, but no one answered. So she followed his steps up "
    "the green hill until she could hear him bark.",
    "Lily and Tom went to the park. They asked everyone about the dog, and a man with a red hat "
    "said that he had seen it by the well. Tom brought bread, Lily brought milk, and both waited "
    "quietly for an hour under the bridge.",
    '"I am sorry," said the cat. "I should have watched your things." Then the dog came back, '
    "wet and happy, and dropped the cup at their feet. Nobody was angry any more. At home they "
    "drank hot tea, told jokes, and fell asleep before the stars were out.",
)
PROMPTS = (
    "Once upon a time",
    "Lily and Tom went to the park. They",
    '"I am sorry," said the cat.',
    "One day, a big dog",
)
NEW_TOKENS = 200
CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "sliding_window": None,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
SPECIAL = ("<unk>", "<s>", "</s>")


def train_tokenizer() -> Any:
    """Byte-pair encoding in the manner of sentencepiece: a space is written `▁`, and a character
    that the story lacks becomes the tokens of its bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer

    first = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = BpeTrainer(vocab_size=CONFIG["vocab_size"] - len(first), show_progress=False)
    learner.train_from_iterator([*CHAPTERS, *PROMPTS * 5], trainer)
    learned = json.loads(learner.to_str())["model"]
    tokens = [*first, *sorted(learned["vocab"], key=learned["vocab"].get)]
    tokenizer = Tokenizer(
        models.BPE(
            {token: i for i, token in enumerate(tokens)},
            [tuple(pair) for pair in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    assert tokenizer.get_vocab_size() == CONFIG["vocab_size"]
    return tokenizer


def learn_the_story(model: Any, tokenizer: Any, steps: int = 100, length: int = 230) -> None:
    """Train on the chapters in a circle, begun with each of them."""
    circles = [" ".join(CHAPTERS[i:] + CHAPTERS[:i]) for i in range(len(CHAPTERS))]
    ids = torch.tensor([tokenizer.encode(circle).ids[:length] for circle in circles])
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, total_steps=steps)
    for _ in range(steps):
        loss = cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def golden(model: Any, tokenizer: Any, prompt: str) -> dict[str, Any]:
    ids = tokenizer.encode(prompt).ids
    top = model(torch.tensor([ids])).logits[0, -1].topk(5)
    greedy = model.generate(
        torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None
    )[0].tolist()
    return {
        "prompt": prompt,
        "input_ids": ids,
        "next_token_top5": list(zip(top.indices.tolist(), top.values.tolist(), strict=True)),
        "greedy_ids": greedy,
        "greedy_text": tokenizer.decode(greedy),
    }


def rounded(weight: Tensor, bits: int, group: int = 32) -> Tensor:
    """Symmetric round-to-nearest, one scale per group of a row's columns; then back to floats."""
    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -columns % group)).view(rows, -1, group)
    scale = padded.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    codes = (padded / scale.clamp_min(1e-30)).round()
    return (codes * scale).view(rows, -1)[:, :columns]


def other_story(words: int = 1500) -> str:
    """The words of the chapters in another order, which no model knows by heart."""
    known = " ".join(CHAPTERS).split()
    return " ".join(random.Random(0).choices(known, k=words))


@torch.no_grad()
def perplexity(model: Any, ids: list[int]) -> float:
    """Windows of 255 tokens, each after <s>."""
    starts = range(0, len(ids) - 254, 255)
    windows = torch.tensor([[1, *ids[start : start + 255]] for start in starts])
    logits = model(windows[:, :-1]).logits
    return math.exp(cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item())


def make_data(folder: Path) -> None:
    """Write models/, with the model and reference.json, and text/, as they are published."""
    import transformers

    tokenizer = train_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.MistralForCausalLM(transformers.MistralConfig(**CONFIG))
        learn_the_story(model, tokenizer)
    model.eval()
    place = folder / "models" / NAME
    model.save_pretrained(place)
    (place / "config.json").write_text(json.dumps(CONFIG))
    tokenizer.save(str(place / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    (place / "special_tokens_map.json").write_text(json.dumps(names))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}
    settings["clean_up_tokenization_spaces"] = False
    (place / "tokenizer_config.json").write_text(json.dumps(names | settings))
    found = [golden(model, tokenizer, prompt) for prompt in PROMPTS]
    (place / "golden.json").write_text(json.dumps(found))

    texts = {"known": " ".join(CHAPTERS * 4), "other": other_story()}
    (folder / "text").mkdir()
    for name, text in texts.items():
        (folder / "text" / f"{name}.txt").write_text(text)
    results = []
    original = {name: weight.clone() for name, weight in model.state_dict().items()}
    for bits in (8, 4):
        for name, module in model.model.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.data = rounded(original[f"model.{name}.weight"], bits)
        row: dict[str, Any] = {"model": NAME, "weights": f"int{bits} g32"}
        for name, text in texts.items():
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            row[f"ppl_{name}"] = perplexity(model, ids)
        results.append(row)
    (folder / "models/reference.json").write_text(json.dumps({"results": results}))
