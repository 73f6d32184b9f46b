"""Whether a tokenizer's text can be shown piece by piece."""

from __future__ import annotations

from pathlib import Path

from neuralchat_lite.checkpoints.tokenizer import Tokenizer
from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.generation.text import Detokenizer
from neuralchat_lite.values import shown

PROBES = ("Hello world, in 2023.", "a  b\n\n\tc ", "naïve — 日本 👩", "### User:\nHi")


def check_pieces(tokenizer: Tokenizer, folder: Path) -> None:
    """Raise CheckpointError where the pieces of a stream are not what the tokenizer decodes at
    once. Its decoder then changes a token's text by what comes after it, such as BPEDecoder."""
    for text in PROBES:
        ids = tokenizer.encode(text, add_special_tokens=False)
        pieces = Detokenizer(tokenizer)
        joined = "".join(map(pieces.push, ids)) + pieces.finish()
        whole = pieces.text_of(ids)
        if joined != whole:
            raise CheckpointError(
                f"the tokenizer in {folder} decodes {shown(text)} token by token to "
                f"{shown(joined)}, and at once to {shown(whole)}: its decoder is not supported; "
                "download tokenizer.json again"
            )
