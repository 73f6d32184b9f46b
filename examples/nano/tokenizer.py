"""The tokenizer of neural-chat-nano: byte-fallback BPE, digits one by one.

python examples/nano/tokenizer.py FOLDER
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from problems import SYSTEM, make_problem
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from neuralchat_lite.generation.prompt import NEURAL_CHAT, NEURAL_CHAT_REPLY

VOCABULARY = 1024  # at most; this corpus has no more than 687
CONTEXT = 1024
SPECIAL = ["<unk>", "<s>", "</s>"]

# neural-chat's prompt, for programs that read the template from the tokenizer. No <s> in front.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{ '### System:\\n' + message.content + '\\n' }}
{%- elif message.role == 'user' -%}{{ '### User:\\n' + message.content + '\\n' }}
{%- elif message.role == 'assistant' -%}{{ '### Assistant:\\n' + message.content + '\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '### Assistant:\\n' }}{%- endif -%}
"""


def corpus(count: int = 20000, seed: int = 0) -> Iterator[str]:
    rng = random.Random(seed)
    yield from (form.format(SYSTEM) for form in NEURAL_CHAT.values())
    for _ in range(count):
        problem = make_problem(rng, held_out=False)
        yield NEURAL_CHAT["user"].format(problem.question)
        yield NEURAL_CHAT_REPLY + problem.answer


def train_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    # A word keeps the space before it, an operator both; digits and line ends stand alone.
    pieces = Regex(
        "\u2581?[A-Za-z]+|[0-9]|\n|\u2581?[-+*=]\u2581?|\u2581|[^-+*=A-Za-z0-9\n\u2581]+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, "isolated")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=[*map(chr, range(0x20, 0x7F)), "\n", "\u2581"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """As files that older versions of transformers read too."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    trained = train_tokenizer()
    save_tokenizer(trained, folder)
    print(f"{len(trained)} tokens, in {folder}")
