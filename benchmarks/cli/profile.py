"""`profile`: where the time of decoding one token goes, operation by operation."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from benchmarks.cli.latency import ShapeName, Threads
from benchmarks.latency.profile import Profile, profile_decoding
from benchmarks.models.shapes import SHAPES, shape_name
from benchmarks.report.terminal import console
from neuralchat_lite.checkpoints.kinds import is_packed
from neuralchat_lite.checkpoints.random_weights import RandomCheckpoint
from neuralchat_lite.cli.terminal import warn
from neuralchat_lite.engines.native import open_native
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.kernels import cpu, native
from neuralchat_lite.kernels.kv_format import kv_format_of
from neuralchat_lite.loading import agreed_config
from neuralchat_lite.packed.format import open_packed
from neuralchat_lite.packed.quantize import quantize_checkpoint
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig


def profile(
    shape: ShapeName = None,
    folder: Annotated[Path | None, typer.Option(help="A quantized model instead.")] = None,
    weight_dtype: Annotated[str, typer.Option(help="int4 or int8.")] = "int4",
    group_size: Annotated[int, typer.Option(help="Columns that share a scale.")] = 32,
    compute_dtype: Annotated[str, typer.Option(help="Precision of activations.")] = "bf16",
    kv_cache_dtype: Annotated[str, typer.Option(help="Of keys and values.")] = "bf16",
    context: Annotated[int, typer.Option(help="Positions before the token.", min=1)] = 32,
    tokens: Annotated[int, typer.Option(help="Tokens in a round.", min=1)] = 32,
    rounds: Annotated[int, typer.Option(help="Rounds; medians are shown.", min=1)] = 5,
    threads: Threads = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A JSON file.")] = None,
) -> None:
    """Show bytes, time and share of the roofline of each operation of a token."""
    if folder is not None and (shape is not None or not is_packed(folder)):
        raise ConfigError(
            f"--folder {folder} must be a quantized model, without --shape: "
            "`neuralchat-lite quantize MODEL -o FOLDER` makes one"
        )
    if threads is not None:
        native.set_threads(cpu.check_threads(threads, "--threads"))
    config = WeightOnlyQuantConfig(
        weight_dtype=weight_dtype, group_size=group_size, compute_dtype=compute_dtype
    )
    with tempfile.TemporaryDirectory(prefix="neuralchat-lite-profile-") as temporary:
        name = shape_name(shape or "1b")
        if folder is None:
            quantize_checkpoint(RandomCheckpoint(SHAPES[name]), config, Path(temporary) / "model")
        packed = open_packed(folder or Path(temporary) / "model")
        config = agreed_config(packed.config, {"compute_dtype": compute_dtype}, packed.folder)
        running = open_native(
            packed, config, context_length=None, kv_format=kv_format_of(kv_cache_dtype)
        )
        found = profile_decoding(running.decoder, context, tokens, rounds)
        conditions = {
            "cpu": cpu.cpu_model(),
            "isa": native.isa().value,
            "threads": int(native.threads().value),
            "model": str(folder or name),
            "weight_dtype": config.weight_dtype,
            "compute_dtype": config.compute_dtype,
            "kv_cache_dtype": kv_cache_dtype,
            "context": context,
        }
        show(found, conditions)
        if output is not None:
            output.write_text(json.dumps(conditions | asdict(found), indent=1) + "\n", "utf-8")
            warn(f"written to {output}")


def show(found: Profile, conditions: dict[str, object]) -> None:
    out = console()
    table = Table("operation", "MB", "µs", "of the step", "GB/s", "of the bandwidth")
    rows = [(one.name, one.bytes, one.seconds) for one in found.operations]
    rows.append(("the step", found.bytes, found.seconds))
    for name, size, seconds in rows:
        rate = size / seconds if seconds else 0.0
        table.add_row(
            name,
            f"{size / 1e6:.2f}",
            f"{seconds * 1e6:.1f}",
            f"{seconds / found.seconds:.1%}",
            f"{rate / 1e9:.1f}",
            f"{rate / found.bandwidth:.2f}",
        )
    out.print(", ".join(f"{name} {value}" for name, value in conditions.items()), markup=False)
    out.print(table)
    out.print(
        f"bandwidth {found.bandwidth / 1e9:.1f} GB/s; the step reaches "
        f"{found.roofline_share:.2f} of the roofline, {1 / found.seconds:.1f} tokens/s",
        f"around the kernels (Python, loops): {found.around * 1e6:.0f} µs, "
        f"{found.around / found.seconds:.1%} of the step; hand-over of a loop "
        f"{found.handover * 1e6:.2f} µs",
        sep="\n",
        markup=False,
    )
