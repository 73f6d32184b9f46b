"""The commands that write weights: `neuralchat-lite quantize`, `merge` and `export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from neuralchat_lite.cli.options import (
    WEIGHTS,
    Adapter,
    Calibration,
    CalibrationLength,
    CalibrationSamples,
    CalibrationSeed,
    ModelArgument,
    Revision,
    WeightsGroup,
    calibration_option,
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
    algorithm: Annotated[
        str | None,
        option(WEIGHTS, "rtn (default), hqq, or one that calibrates: gptq, autoround, awq, teq."),
    ] = None,
    algorithm_arg: Annotated[
        list[str] | None,
        option(WEIGHTS, "A setting of the algorithm, such as iters=100 (repeatable)."),
    ] = None,
    calibration: Calibration = None,
    calibration_samples: CalibrationSamples = None,
    calibration_length: CalibrationLength = None,
    calibration_seed: CalibrationSeed = None,
    adapter: Adapter = None,
    revision: Revision = None,
) -> None:
    """Quantize a checkpoint, into the cache or into a folder of its own, and print the folder."""
    config = weights.config()
    if algorithm is not None or algorithm_arg:
        config = {**(config or {}), "algorithm": algorithm or "RTN"}
        if algorithm_arg:
            config["algorithm_args"] = dict(map(setting, algorithm_arg))
    texts = calibration_option(
        calibration, calibration_samples, calibration_length, calibration_seed
    )
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
            calibration=texts,
            revision=revision,
            progress=progress.update,
        )
    say(str(folder))


def setting(text: str) -> tuple[str, Any]:
    """A setting of an algorithm: NAME=VALUE, where the value is a number, true or false."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--algorithm-arg {text!r} has no '=': write it as iters=100")
    try:
        return name, json.loads(value.lower())
    except ValueError:
        return name, value


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
    output: Annotated[Path, typer.Argument(help="The new GGUF file or folder.")],
    kind: Annotated[
        str | None,
        option(
            WEIGHTS,
            "Of a GGUF file of a checkpoint: q8_0 (default), q4_0, q4_1. Of a folder of codes: "
            "gptq, compressed-tensors.",
            "--type",
        ),
    ] = None,
    revision: Revision = None,
) -> None:
    """Write a model for other programs, and print the path: a GGUF file or a folder of codes.

    The codes of a quantized folder are written as they are; for a GGUF file a checkpoint is
    quantized.
    """
    from neuralchat_lite.api import export as export_model

    with ProgressBar(warn) as progress:
        path = export_model(model, output, kind, revision=revision, progress=progress.update)
    say(str(path))
