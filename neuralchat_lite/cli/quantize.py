"""The commands that write weights: `neuralchat-lite quantize`, `merge` and `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuralchat_lite.cli.options import (
    WEIGHTS,
    Adapter,
    ModelArgument,
    Revision,
    WeightsGroup,
    option,
    with_groups,
)
from neuralchat_lite.cli.terminal import say, warn
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.files.progress_bar import ProgressBar

QUANTIZE_EXAMPLE = (
    "Example: [bold]neuralchat-lite quantize ./mistral-7b -o ./mistral-7b-int4 "
    "--group-size 128[/bold]"
)
MERGE_EXAMPLE = (
    "Example: [bold]neuralchat-lite merge ./mistral-7b ./sft_lora ./dpo_lora "
    "-o ./mistral-7b-dpo[/bold]"
)

EXPORT_EXAMPLE = (
    "Example: [bold]neuralchat-lite export ./mistral-7b mistral-7b.gguf --type q4_1[/bold]"
)


@with_groups
def quantize(
    model: ModelArgument,
    *,
    output: Annotated[
        Path | None,
        option(WEIGHTS, "Write a folder that stands alone here, not the cache.", "-o", "--output"),
    ] = None,
    weights: WeightsGroup,
    adapter: Adapter = None,
    revision: Revision = None,
) -> None:
    """Quantize a checkpoint, into the cache or into a folder of its own, and print the folder."""
    config = weights.config()
    if output is None and weights.compute_dtype is not None:
        raise ConfigError(
            f"--compute-dtype {weights.compute_dtype} is not a property of quantized weights in "
            "the cache: give it to generate or chat, or write a folder of its own with -o"
        )
    from neuralchat_lite.api import quantize as quantize_model

    with ProgressBar(warn) as progress:
        folder = quantize_model(
            model,
            config,
            output,
            adapters=adapter or (),
            revision=revision,
            progress=progress.update,
        )
    say(str(folder))


def merge(
    model: ModelArgument,
    adapters: Annotated[list[str], typer.Argument(metavar="ADAPTER...", help="LoRA adapters.")],
    output: Annotated[Path, option(WEIGHTS, "The new folder.", "-o", "--output")],
    revision: Revision = None,
) -> None:
    """Merge LoRA adapters into a checkpoint, in order, and print the folder.

    The folder has the checkpoint's own dtype, and the last adapter's tokenizer where it brings
    one. Quantizing does not need it: see [bold]--adapter[/bold] of the other commands.
    """
    from neuralchat_lite.api import merge as merge_adapters

    with ProgressBar(warn) as progress:
        folder = merge_adapters(
            model, adapters, output, revision=revision, progress=progress.update
        )
    say(str(folder))


def export(
    model: ModelArgument,
    output: Annotated[Path, typer.Argument(metavar="FILE", help="The new GGUF file.")],
    kind: Annotated[
        str | None,
        option(WEIGHTS, "Of a checkpoint's matrices: q8_0 (default), q4_0 or q4_1.", "--type"),
    ] = None,
    revision: Revision = None,
) -> None:
    """Write a model as a GGUF file for llama.cpp, and print its path.

    The codes of a quantized folder are written as they are; a checkpoint is quantized.
    """
    from neuralchat_lite.api import export as export_model

    with ProgressBar(warn) as progress:
        path = export_model(model, output, kind, revision=revision, progress=progress.update)
    say(str(path))
