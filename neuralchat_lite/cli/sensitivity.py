"""`neuralchat-lite sensitivity`: which matrices are worth more bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from neuralchat_lite.cli.options import (
    RUN,
    Adapter,
    Calibration,
    CalibrationLength,
    CalibrationSamples,
    CalibrationSeed,
    ModelArgument,
    Revision,
    WeightsGroup,
    calibration_option,
    matrix_options,
    option,
    with_groups,
)
from neuralchat_lite.cli.terminal import say, warn
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.files.progress import size_text
from neuralchat_lite.files.progress_bar import ProgressBar
from neuralchat_lite.quantization.sensitivity_plot import require_drawable

if TYPE_CHECKING:
    from neuralchat_lite.mixed_precision import Sensitivity

EXAMPLE = (
    "Example: [bold]neuralchat-lite sensitivity ./mistral-7b --calibration texts.jsonl "
    "--budget 5.0 -o mix.json --plot mix.svg[/bold], then [bold]neuralchat-lite quantize "
    "./mistral-7b --config mix.json[/bold]"
)
DEAREST = 5  # matrices that are named
BUDGET = "Budget"


@with_groups
def sensitivity(
    model: ModelArgument,
    *,
    weights: WeightsGroup,
    calibration: Calibration = None,
    calibration_samples: CalibrationSamples = None,
    calibration_length: CalibrationLength = None,
    calibration_seed: CalibrationSeed = None,
    budget: Annotated[
        str | None,
        option(BUDGET, "Bits per weight (5.0), or bytes (90MB). Default: as configured."),
    ] = None,
    kl: Annotated[
        float | None, option(BUDGET, "Instead: the most KL divergence in nats, as measured.")
    ] = None,
    candidate: Annotated[
        list[str] | None,
        option(BUDGET, "Settings to try: int8 (default), int4,group_size=64, ... (repeatable)."),
    ] = None,
    output: Annotated[
        Path | None,
        option(RUN, "Write the configuration here, for --config of the others.", "-o", "--output"),
    ] = None,
    plot: Annotated[Path | None, option(RUN, "Draw it into this .svg or .png file.")] = None,
    adapter: Adapter = None,
    revision: Revision = None,
) -> None:
    """Measure what quantizing each matrix costs, and propose where bytes are best spent.

    Prints a configuration with overrides, for [bold]--config[/bold] of quantize, generate and chat.
    """
    texts = calibration_option(
        calibration, calibration_samples, calibration_length, calibration_seed
    )
    if weights.compute_dtype is not None:
        raise ConfigError(
            f"--compute-dtype {weights.compute_dtype} is not a property of weights, which are "
            "measured in fp32: leave it out"
        )
    for file in (output, plot):
        if file is not None and not file.parent.is_dir():
            raise ConfigError(f"{file.parent} is not a folder: make it, or give another file")
    if plot is not None:
        require_drawable(plot)
    config = weights.config()
    from neuralchat_lite.mixed_precision import CANDIDATES
    from neuralchat_lite.mixed_precision import sensitivity as measure

    with ProgressBar(warn) as progress:
        found = measure(
            model,
            config,
            calibration=texts,
            budget=budget if budget is None or not is_number(budget) else float(budget),
            kl=kl,
            candidates=[matrix_options(text) for text in candidate or CANDIDATES],
            adapters=adapter or (),
            revision=revision,
            progress=progress.update,
        )
    for line in summary(found):
        warn(line)
    text = json.dumps(found.options, indent=2)
    if output is not None:
        output.write_text(f"{text}\n", encoding="utf-8")
    if plot is not None:
        found.plot(plot)
    say(text)


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def summary(found: Sensitivity) -> list[str]:
    """What was measured, as lines for people."""
    matrices = len(found.costs)
    lines = [
        f"KL divergence from the checkpoint's weights in nats, on {found.tokens} tokens; "
        f"{matrices} matrices, one at a time:"
    ]
    ordered = sorted(found.costs, key=lambda cost: -cost.options[0].kl)
    names = [cost.module for cost in ordered[:DEAREST]]
    lines += [
        f"  {name:{max(map(len, names))}}  {cost.options[0].kl:.3g}"
        for name, cost in zip(names, ordered, strict=False)
    ]
    rows = [("", "bits per weight", "size", "sum of single", "measured", "on other text")]
    for name, one in (("as configured", found.configured), ("proposed", found.proposed)):
        other = "-" if one.kl_elsewhere is None else f"{one.kl_elsewhere:.4g}"
        size = size_text(one.nbytes)
        rows.append(
            (name, f"{one.bits_per_weight:.3f}", size, f"{one.kl_sum:.4g}", f"{one.kl:.4g}", other)
        )
    return lines + aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
