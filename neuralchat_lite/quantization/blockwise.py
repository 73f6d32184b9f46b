"""Calibrated quantization, one block after the other.

The block in work is in fp32, its inputs lie in a mapped file, and everything else stays in the
source. What a block became is a file of its own in a work folder, written whole: a run that was
killed goes on after the last one, with the same inputs, to the same bytes.

An algorithm is a function of one block (`gptq.py`, `autoround.py`, ...). The output head has no
block, and is rounded to nearest.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from neuralchat_lite.checkpoints.source import Source
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.families.architecture import HEAD_MODULE, TensorSpec
from neuralchat_lite.families.rope import RotaryTable
from neuralchat_lite.files.folder import flush_file, flush_folder
from neuralchat_lite.files.mapped import MappedFile
from neuralchat_lite.files.progress import Progress, ProgressCallback
from neuralchat_lite.files.work import at_work_in
from neuralchat_lite.quantization import rtn, search
from neuralchat_lite.quantization.algorithm_args import all_settings
from neuralchat_lite.quantization.calibration import Calibration
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.quantization.nearest import RoundToNearest
from neuralchat_lite.quantization.quantizer import PackedSlab, Quantizer, QuantizerIdentity
from neuralchat_lite.quantization.quiet import quiet
from neuralchat_lite.quantization.rtn import QuantizedMatrix
from neuralchat_lite.quantization.schemes import SEARCHED
from neuralchat_lite.quantization.states import Samples, StateFiles
from neuralchat_lite.quantization.target import Target
from neuralchat_lite.quantization.torch_block import TorchBlock

log = logging.getLogger(__name__)

PARTS = ("codes", "scales", "zeros", "minima")  # of a PackedSlab
EXTRA = "pip install 'neuralchat_lite[calibration]'"


@dataclass
class BlockResult:
    """What a block became. Names are relative to the block.

    matrices: of every target
    changed: tensors that are stored otherwise than in the source, such as a norm that took over
        the scales of channels
    """

    matrices: dict[str, QuantizedMatrix]
    changed: dict[str, Tensor] = field(default_factory=dict)


class Blockwise(Quantizer):
    """The quantizer of a calibrated algorithm. Its subclasses say which.

    packages: that it imports -> the distribution to install
    uses_wanted: whether it compares with inputs and outputs of unquantized blocks
    """

    algorithm: str
    version: int
    packages: Mapping[str, str]
    uses_wanted: bool = False
    SEED = 0

    def __init__(self, config: WeightOnlyQuantConfig) -> None:
        self.config = config
        self.settings = all_settings(self.algorithm, config.algorithm_args)
        self.calibration: Calibration | None = None
        self.head = RoundToNearest(config)
        self.work: Path | None = None
        self.norm_dtype = torch.float32  # of the block in work, as the source stores it

    def block(
        self, block: TorchBlock, targets: Sequence[Target], samples: Samples, seed: int
    ) -> BlockResult:
        """Quantize one block, which may be changed."""
        raise NotImplementedError

    @property
    def identity(self) -> QuantizerIdentity:
        assert self.calibration is not None, "calibrate_with comes first"
        name = self.algorithm.lower()
        settings = {**self.settings, "outside_blocks": rounding_versions(self.config)}
        return QuantizerIdentity(name, self.version, settings, self.calibration.digest)

    def calibrate_with(self, calibration: Calibration | None) -> None:
        if calibration is None:
            raise ConfigError(
                f"algorithm={self.algorithm!r} needs texts to calibrate with, got none: give "
                "calibration=FILE (`--calibration FILE`), a text or JSONL file, or use "
                "algorithm='RTN' or 'HQQ'"
            )
        self.calibration = calibration

    def slabs(self, source: Source, spec: TensorSpec) -> Iterator[PackedSlab]:
        index = layer_of(source, spec.module)
        if index is None:
            return self.head.slabs(source, spec)
        file = self.opened(index)
        parts = {
            part: file.tensor(name)
            for part in PARTS
            if (name := f"{spec.module}.{part}") in file.header
        }
        codes, scales = parts["codes"], parts["scales"]
        slab = PackedSlab(codes, scales, parts.get("zeros"), minima=parts.get("minima"))
        return iter([slab])

    def changed(self, source: Source, name: str) -> Tensor | None:
        index = layer_of(source, name)
        if index is None:
            return None
        file = self.opened(index)
        return file.tensor(name) if name in file.header else None

    def opened(self, index: int) -> MappedFile:
        assert self.work is not None, "prepare comes first"
        return MappedFile(block_file(self.work, index))

    # ---- the run ----

    def prepare(self, source: Source, work: Path, progress: ProgressCallback | None = None) -> None:
        assert self.calibration is not None, "calibrate_with comes first"
        require_packages(self.algorithm, self.packages)
        refuse_codes(source, self.algorithm)
        self.work = work
        with at_work_in(work), quiet():
            self.run(source, self.calibration, work, progress)

    def run(
        self,
        source: Source,
        calibration: Calibration,
        work: Path,
        progress: ProgressCallback | None,
    ) -> None:
        arch = source.architecture
        samples, length = calibration.ids.shape
        files = StateFiles(work, (samples, length, arch.hidden_size))
        cos, sin = (table[:length] for table in RotaryTable(arch).upto(length))
        first = next(
            (index for index in range(arch.layers) if not block_file(work, index).exists()),
            arch.layers,
        )
        if first == arch.layers:
            return
        if first == 0:
            embed(source, calibration, files, both=self.uses_wanted)
        else:
            log.info("going on with block %d of %d", first + 1, arch.layers)
        started = time.monotonic()
        for index in range(first, arch.layers):
            report(progress, source, index)
            inputs = files.open(f"inputs-{index}")
            plain = files.open(f"plain-{index}") if self.uses_wanted else inputs
            self.one_block(source, index, files, Samples(inputs, None, cos, sin), plain)
            del inputs, plain
            left = (time.monotonic() - started) / (index + 1 - first) * (arch.layers - index - 1)
            log.info("block %d of %d: %.0f s left", index + 1, arch.layers, left)
        report(progress, source, arch.layers)

    def one_block(
        self, source: Source, index: int, files: StateFiles, samples: Samples, plain: Tensor
    ) -> None:
        """Quantize block `index`, and write its file and the inputs of the next.

        plain: its inputs from blocks that are not quantized
        """
        block = TorchBlock(source, index)
        last = index + 1 == source.architecture.layers
        if self.uses_wanted:
            unquantized = Samples(plain, None, samples.cos, samples.sin)
            files.write(f"plain-{index + 1}", outputs_of(unquantized, block))
            wanted = files.open(f"plain-{index + 1}")
            samples = Samples(samples.inputs, wanted, samples.cos, samples.sin, plain)
        prefix = source.architecture.layer(index).qkv[0].name.removesuffix(block.block.qkv[0].name)
        targets = targets_of(self.config, block, prefix)
        self.norm_dtype = source.dtype(f"{prefix}{block.block.attention_norm.weight}")
        result = self.block(block, targets, samples, self.SEED + index)
        changed = {
            f"{prefix}{name}": tensor.to(source.dtype(f"{prefix}{name}"))
            for name, tensor in result.changed.items()
        }
        if not last:
            after = TorchBlock(source, index)
            for target in targets:
                linear = after.get_submodule(target.name)
                linear.weight.data = target.dequantized(result.matrices[target.name])
            for name, tensor in changed.items():
                after.get_parameter(name.removeprefix(prefix)).data = tensor.float()
            files.write(f"inputs-{index + 1}", outputs_of(samples, after))
        write_block(block_file(files.folder, index), targets, result.matrices, changed)
        files.remove(f"inputs-{index}")
        files.remove(f"plain-{index}")
        if last:
            files.remove(f"plain-{index + 1}")


def rounding_versions(config: WeightOnlyQuantConfig) -> dict[str, int]:
    """The versions of what rounds the matrices that have no block: the head, and an embedding that
    an override names."""
    patterns = (each.pattern for each in config.overrides)
    named = [pattern for pattern in patterns if not set(pattern) & set("*?[")]
    types = {config.dtype_of(module) for module in (HEAD_MODULE, *named)}
    return {"rtn": rtn.VERSION} | ({"search": search.VERSION} if SEARCHED in types else {})


def embed(source: Source, calibration: Calibration, files: StateFiles, *, both: bool) -> None:
    """Write the inputs of the first block: rows of the embedding."""
    table = source.weight(source.architecture.embedding_name)

    def fill(into: Tensor) -> None:
        for row, ids in enumerate(calibration.ids):
            into[row] = table[ids].float()

    files.write("inputs-0", fill)
    if both:
        files.write("plain-0", fill)


def outputs_of(samples: Samples, block: TorchBlock) -> Callable[[Tensor], None]:
    def fill(into: Tensor) -> None:
        for part, output in samples.run_all(block):
            into[part] = output

    return fill


def targets_of(config: WeightOnlyQuantConfig, block: TorchBlock, prefix: str) -> list[Target]:
    """The matrices of a block that the configuration quantizes."""
    found = []
    for linear in block.block.linears:
        module = f"{prefix}{linear.name}"
        settings = config.settings_of(module)
        if settings is not None:
            found.append(Target.of(linear.name, module, settings))
    return found


def write_block(
    path: Path,
    targets: Sequence[Target],
    matrices: Mapping[str, QuantizedMatrix],
    changed: Mapping[str, Tensor],
) -> None:
    """Write what a block became, packed, under its name only when it is whole."""
    tensors = {name: tensor.contiguous() for name, tensor in changed.items()}
    for target in targets:
        slab = matrices[target.name].packed(target.stored)
        for part in PARTS:
            if (tensor := getattr(slab, part)) is not None:
                tensors[f"{target.module}.{part}"] = tensor
    unfinished = path.with_suffix(".writing")
    save_file(tensors, unfinished)
    flush_file(unfinished)
    unfinished.rename(path)
    flush_folder(path.parent)


def block_file(work: Path, index: int) -> Path:
    return work / f"block-{index:04}.safetensors"


def layer_of(source: Source, name: str) -> int | None:
    """The number of the block that a module or tensor belongs to; None outside of blocks."""
    names = source.architecture.names
    prefix = f"{names.base}{names.layers}."
    if not name.startswith(prefix):
        return None
    return int(name.removeprefix(prefix).partition(".")[0])


def report(progress: ProgressCallback | None, source: Source, index: int) -> None:
    """Say that blocks 0 .. index - 1 are done. All have the same size, in bytes of fp32."""
    if progress is None:
        return
    arch = source.architecture
    size = 4 * sum(linear.rows * linear.cols for linear in arch.block.linears)
    name = f"block {min(index + 1, arch.layers)} of {arch.layers}"
    progress(Progress("calibrate", name, index * size, arch.layers * size))


def refuse_codes(source: Source, algorithm: str) -> None:
    for linear in source.architecture.layer(0).linears:
        if source.packed(linear.weight) is not None:
            raise ConfigError(
                f"algorithm={algorithm!r} needs the original weights, but {source.name} is "
                "quantized already: give the checkpoint that it was made from, or leave algorithm "
                "out to take its codes as they are"
            )


def require_packages(algorithm: str, packages: Mapping[str, str]) -> None:
    """Raise ConfigError unless the packages of an algorithm are installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"algorithm={algorithm!r} needs the package {packages[missing[0]]}, which is not "
            f"installed: {EXTRA}"
        )
