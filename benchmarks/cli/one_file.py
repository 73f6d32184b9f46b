"""`file`: one GGUF file in this library and in llama.cpp, as a table of KL divergences.

python -m benchmarks file MODEL.gguf --text TEXT.txt
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.accuracy.one_file import compared, logits_of
from neuralchat_lite.errors import ConfigError


def file_command(
    model: Annotated[Path, typer.Argument(help="a GGUF file")],
    text: Annotated[Path, typer.Option(help="a text file")],
    tokens: Annotated[int, typer.Option(min=2, help="of its beginning")] = 512,
) -> None:
    """Compare our distributions with llama.cpp's on the same file, and both with fp32."""
    for path in (model, text):
        if not path.is_file():
            raise ConfigError(f"{path} is not a file: give a GGUF file and a text file")
    print("| reference | model | mean KL | largest KL | same likeliest token |")
    print("|---|---|---|---|---|")
    said = text.read_text(encoding="utf-8")
    for row in compared(logits_of(model, said, tokens)):
        print(
            f"| {row.reference} | {row.model} | {row.kl:.2g} | {row.largest:.2g} | "
            f"{row.same_top:.1%} |",
            flush=True,
        )
