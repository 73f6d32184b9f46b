"""What quantizing each matrix costs: the mean KL divergence of the next token, on some texts.

One matrix at a time is replaced by what its codes stand for, and everything else keeps the
checkpoint's weights. The inputs of each block are computed once, so only the blocks after a matrix
run again. All options of all matrices of one block go through the later blocks together, so each
is read once. What a block has cost is a line of a file: a run that was killed goes on there, and
another budget needs no measuring.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from neuralchat_lite.checkpoints.source import Source
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.families.architecture import HEAD_MODULE, TensorSpec
from neuralchat_lite.files.progress import Progress, ProgressCallback
from neuralchat_lite.kernels.layout import SCALE_DTYPES, PackedMatrix, dequantize, packed_shapes
from neuralchat_lite.quantization import open_quantizer
from neuralchat_lite.quantization.calibration import Calibration
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.quantization.levels import LEVELS
from neuralchat_lite.quantization.mixture import Cost, Option
from neuralchat_lite.quantization.settings import MatrixSettings
from neuralchat_lite.quantization.torch_decoder import TorchDecoder, divergence

log = logging.getLogger(__name__)

ALONE = ("RTN", "HQQ")  # algorithms that take one matrix at a time


class Measure:
    """Measures a source on some texts.

    asked: the options of the configuration, as they were given
    candidates: options of a matrix that are tried beside the configured ones
    """

    def __init__(
        self,
        source: Source,
        calibration: Calibration,
        asked: Mapping[str, Any],
        candidates: Sequence[Mapping[str, Any]],
    ) -> None:
        self.source = source
        self.architecture = source.architecture
        self.ids = calibration.ids
        self.asked = asked
        self.config = WeightOnlyQuantConfig(**asked)
        self.candidates = [{"weight_dtype": self.config.weight_dtype}, *candidates]
        require_alone(self.config)
        self.decoder = TorchDecoder(source, self.ids.shape[1])
        self.states: list[Tensor] = []
        self.reference = torch.empty(0)

    def specs(self) -> Iterator[tuple[int | None, str, TensorSpec]]:
        """(layer, kind, matrix) of all that may be chosen: what an override of the configuration
        names stays as that says."""
        specs = {spec.module: spec for spec in self.architecture.tensors() if spec.is_matrix}
        for index in range(self.architecture.layers):
            linears = self.architecture.layer(index).linears
            for part, linear in zip(self.architecture.block.linears, linears, strict=True):
                if self.is_free(linear.name):
                    yield index, part.name, specs[linear.name]
        if self.is_free(HEAD_MODULE):
            yield None, HEAD_MODULE, specs[HEAD_MODULE]

    def is_free(self, module: str) -> bool:
        return self.config.converts(module) and self.config.override_of(module) is None

    def options(self, module: str) -> list[MatrixSettings]:
        """The settings that are tried for a matrix, those of the configuration first."""
        found = [self.config.settings_of(module)]
        for candidate in self.candidates:
            tried = WeightOnlyQuantConfig(**{**self.asked, "overrides": {module: candidate}})
            found.append(tried.settings_of(module))
        return list(dict.fromkeys(settings for settings in found if settings is not None))

    @torch.no_grad()
    def run(self, file: Path, key: str, progress: ProgressCallback | None = None) -> list[Cost]:
        """Measure all matrices, but for those that the file has already.

        file: JSON lines; of another key than its first line's it is begun anew
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            known = read_costs(file, key)
            todo: dict[int | None, list[tuple[str, TensorSpec]]] = {}
            for layer, kind, spec in self.specs():
                todo.setdefault(layer, []).append((kind, spec))
            missing = [layer for layer in todo if layer not in known]
            if missing:
                self.begin(progress)
            if not known:
                file.write_text(json.dumps({"key": key}) + "\n")
            sizes = {layer: self.work(layer, len(todo[layer])) for layer in missing}
            total, done, started = sum(sizes.values()), 0, time.monotonic()
            for layer in missing:
                report(progress, "the head" if layer is None else f"block {layer + 1}", done, total)
                known[layer] = self.costs(layer, todo[layer])
                append_line(file, {"layer": layer, "costs": list(map(asdict, known[layer]))})
                done += sizes[layer]
                left = (time.monotonic() - started) / done * (total - done)
                log.info("block %s of %d: %.0f s left", layer, self.architecture.layers, left)
            report(progress, "", total, total)
            return [cost for layer in todo for cost in known[layer]]

    def begin(self, progress: ProgressCallback | None = None) -> None:
        """Run the checkpoint's own weights, once."""
        if self.states:
            return
        self.states = self.decoder.states(self.ids)
        self.reference = torch.cat(list(self.decoder.log_probs(self.states[-1])))

    def work(self, layer: int | None, matrices: int) -> int:
        """Bytes of fp32 weights that the variants of a layer go through, about."""
        arch = self.architecture
        after = 0 if layer is None else arch.layers - layer
        block = sum(linear.rows * linear.cols for linear in arch.block.linears)
        head = arch.vocab_size * arch.hidden_size
        return 4 * matrices * len(self.candidates) * (after * block + head)

    def costs(self, layer: int | None, matrices: Sequence[tuple[str, TensorSpec]]) -> list[Cost]:
        """What the matrices of a block cost, or the head (None)."""
        tried = [
            (kind, spec, settings)
            for kind, spec in matrices
            for settings in self.options(spec.module)
        ]
        measured = self.of_head(tried) if layer is None else self.of_block(layer, tried)
        found: dict[str, Cost] = {}
        for (kind, spec, settings), kl in zip(tried, measured, strict=True):
            rows, cols = spec.shape
            option = Option(settings, matrix_bytes(settings, rows, cols), kl)
            before = found.get(spec.module, Cost(spec.module, kind, layer, rows * cols, ()))
            found[spec.module] = replace(before, options=(*before.options, option))
        return list(found.values())

    def of_head(self, tried: Sequence[tuple[str, TensorSpec, MatrixSettings]]) -> list[float]:
        x = self.states[-1]
        heads = (self.dequantized(spec, settings) for _, spec, settings in tried)
        return [divergence(self.reference, self.decoder.log_probs(x, head)) for head in heads]

    def of_block(
        self, layer: int, tried: Sequence[tuple[str, TensorSpec, MatrixSettings]]
    ) -> list[float]:
        block = self.decoder.block(layer)
        outputs = []
        for kind, spec, settings in tried:
            linear = block.get_submodule(kind)
            before = linear.weight.data
            assert isinstance(before, Tensor)
            linear.weight.data = self.dequantized(spec, settings)
            outputs.append(self.decoder.run(block, self.states[layer]))
            linear.weight.data = before
        for index in range(layer + 1, self.architecture.layers):
            block = self.decoder.block(index)
            outputs = [self.decoder.run(block, x) for x in outputs]
        return [divergence(self.reference, self.decoder.log_probs(x)) for x in outputs]

    def dequantized(self, spec: TensorSpec, settings: MatrixSettings) -> Tensor:
        config = WeightOnlyQuantConfig(
            **{**self.asked, "overrides": {spec.module: asdict(settings)}}
        )
        return dequantized(self.source, config, spec)

    @torch.no_grad()
    def whole(self, config: WeightOnlyQuantConfig) -> float:
        """The mean KL of a model that is quantized as a configuration says."""
        self.begin()
        return divergence(self.reference, self.decoder.replaced(self.ids, self.replace(config)))

    def replace(self, config: WeightOnlyQuantConfig) -> Callable[[str], Tensor | None]:
        matrices = ("linear", "lm_head", "embedding")
        specs = {spec.module: spec for spec in self.architecture.tensors() if spec.role in matrices}
        table = self.architecture.embedding_name.removesuffix(".weight")

        def weight(module: str) -> Tensor | None:
            if config.settings_of(module) is None:
                return None
            if module == table and not config.quantizes_table(module):
                return None
            return dequantized(self.source, config, specs[module])

        return weight


def dequantized(source: Source, config: WeightOnlyQuantConfig, spec: TensorSpec) -> Tensor:
    """[rows, cols] fp32: the weights that kernels will see."""
    settings = config.settings_of(spec.module)
    assert settings is not None, f"{spec.module} stays as it is"
    slabs = list(open_quantizer(config).slabs(source, spec))
    parts: dict[str, Tensor | None] = {}
    for name in ("codes", "scales", "zeros", "minima"):
        pieces = [piece for slab in slabs if (piece := getattr(slab, name)) is not None]
        parts[name] = torch.cat(pieces) if pieces else None
    assert parts["codes"] is not None and parts["scales"] is not None
    rows, cols = spec.shape
    return dequantize(
        PackedMatrix(
            LEVELS[settings.weight_dtype].stored,
            rows,
            cols,
            settings.group_size,
            parts["codes"],
            parts["scales"],
            parts["zeros"],
            parts["minima"],
        )
    )


def matrix_bytes(settings: MatrixSettings, rows: int, cols: int) -> int:
    """Bytes of a stored matrix: codes, scales, and zeros or minima, with their padding."""
    stored = LEVELS[settings.weight_dtype].stored
    codes, groups = packed_shapes(stored, rows, cols, settings.group_size)
    scale = SCALE_DTYPES[settings.scale_dtype].itemsize
    beside = {"sym": 0, "asym": 1, "affine8": 1, "affine": scale}[settings.scheme]
    return math.prod(codes) + math.prod(groups) * (scale + beside)


def require_alone(config: WeightOnlyQuantConfig) -> None:
    if config.algorithm not in ALONE:
        raise ConfigError(
            f"sensitivity takes one matrix at a time, and algorithm={config.algorithm!r} a whole "
            f"block: measure with one of {list(ALONE)}, then quantize with the overrides that were "
            f"proposed and {config.algorithm!r}"
        )


def refuse_stored_codes(source: Source) -> None:
    if source.implied_options({}):
        raise ConfigError(
            f"sensitivity compares with the original weights, but {source.name} holds codes: give "
            "the checkpoint that it was made from"
        )


# ---- the file ----


def read_costs(file: Path, key: str) -> dict[int | None, list[Cost]]:
    """What was measured already, by layer. Half a line at the end is what a kill has left."""
    if not file.exists():
        return {}
    try:
        lines = file.read_text(encoding="utf-8").split("\n")[:-1]
        if not lines or json.loads(lines[0]) != {"key": key}:
            return {}
        rows = map(json.loads, lines[1:])
        found = {row["layer"]: [cost_of(each) for each in row["costs"]] for row in rows}
    except (ValueError, TypeError, KeyError):  # of JSON, of its shape
        log.warning("%s is damaged: everything is measured again", file)
        return {}
    file.write_text("".join(f"{line}\n" for line in lines))  # without the half
    return found


def cost_of(noted: Mapping[str, Any]) -> Cost:
    options = tuple(
        Option(MatrixSettings(**each["settings"]), each["nbytes"], each["kl"])
        for each in noted["options"]
    )
    return Cost(**{**noted, "options": options})


def append_line(file: Path, row: Mapping[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(row) + "\n")


def report(progress: ProgressCallback | None, name: str, done: int, total: int) -> None:
    if progress is not None and total:
        progress(Progress("measure", name, done, total))
