"""GPTQ (Frantar et al., 2022), computed by Neural Compressor.

Columns are rounded one after the other, and the error of each is moved to those that are not yet
rounded, as the inputs' second moments say. Neural Compressor's solver of one matrix does that. Two
things are ours: its scales are rounded to the stored dtype before the codes are chosen, and with
static groups, where the solver returns only the last group's scale, all of them are computed again
by its own rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from neuralchat_lite.quantization.blockwise import BlockResult, Blockwise
from neuralchat_lite.quantization.rtn import QuantizedMatrix
from neuralchat_lite.quantization.states import Samples
from neuralchat_lite.quantization.target import Target
from neuralchat_lite.quantization.torch_block import TorchBlock


class GPTQuantizer(Blockwise):
    """The quantizer of algorithm "GPTQ"."""

    algorithm = "GPTQ"
    version = 1
    packages: Mapping[str, str] = {
        "neural_compressor": "neural-compressor-pt",
        "cpuinfo": "py-cpuinfo",
        "prettytable": "prettytable",
    }

    def block(
        self, block: TorchBlock, targets: Sequence[Target], samples: Samples, seed: int
    ) -> BlockResult:
        matrices: dict[str, QuantizedMatrix] = {}
        wanted = {target.name: target for target in targets}
        # Matrices with the same inputs share their second moments.
        parts = (block.block.qkv, (block.block.output,), block.block.gate_up, (block.block.down,))
        groups = [[wanted[part.name] for part in group if part.name in wanted] for group in parts]
        groups = [group for group in groups if group]
        stages = [[group] for group in groups] if self.settings["true_sequential"] else [groups]
        for stage in stages:
            moments = second_moments(block, [group[0].name for group in stage], samples)
            for group in stage:
                moment = moments.pop(group[0].name)
                for target in group:
                    linear = block.get_submodule(target.name)
                    matrix = solved(linear, target, moment, self.settings)
                    matrices[target.name] = matrix
                    linear.weight.data = target.dequantized(matrix)
        return BlockResult(matrices)


def second_moments(
    block: TorchBlock, names: Sequence[str], samples: Samples
) -> dict[str, tuple[Tensor, int]]:
    """The Hessian of each matrix as the solver collects it: [cols, cols], and samples seen."""
    from neural_compressor.torch.algorithms.weight_only.gptq import GPTQ

    solvers, hooks = {}, []
    for name in names:
        linear = block.get_submodule(name)
        solver = solvers[name] = GPTQ(linear, linear.weight.data)

        def collect(
            module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, solver: Any = solver
        ) -> None:
            solver.add_batch(inputs[0], output)

        hooks.append(linear.register_forward_hook(collect))
    for _ in samples.run_all(block):
        pass
    for hook in hooks:
        hook.remove()
    return {name: (solver.H, solver.nsamples) for name, solver in solvers.items()}


@torch.no_grad()
def solved(
    linear: nn.Module, target: Target, moment: tuple[Tensor, int], settings: Mapping[str, Any]
) -> QuantizedMatrix:
    from neural_compressor.torch.algorithms.weight_only.gptq import GPTQ

    weight = linear.weight.data
    assert isinstance(weight, Tensor)
    solver = GPTQ(linear, weight)
    solver.H, solver.nsamples = moment[0].clone(), moment[1]
    solver.quantizer = ranges_of(target, mse=settings["mse"])
    grouped = target.group_size != -1
    static = grouped and (settings["static_groups"] or settings["act_order"])
    scales = zeros = None
    if static:
        alive = weight.clone()
        alive[:, moment[0].diagonal() == 0] = 0  # as the solver does
        scales, zeros = static_ranges(alive, target, mse=settings["mse"])
    found, _, found_zeros, rounded = solver.fasterquant(
        weight.clone(),
        blocksize=settings["block_size"],
        percdamp=settings["percdamp"],
        groupsize=target.group_size,
        act_order=settings["act_order"],
        static_groups=static,
    )
    if scales is None or zeros is None:
        scales, zeros = found, found_zeros
    cols = weight.shape[1]
    group = torch.arange(cols) // (target.group_size if grouped else cols)
    levels = (rounded / scales[:, group]).round_() + zeros[:, group]
    return target.matrix(levels, scales, zeros)


def static_ranges(weight: Tensor, target: Target, *, mse: bool) -> tuple[Tensor, Tensor]:
    """Scales and zeros of all groups, [rows, groups], from the weights as they are."""
    scales, zeros = [], []
    for columns in torch.split(weight, target.group_size, 1):
        ranges = ranges_of(target, mse=mse)
        ranges.find_params(columns, weight=True)
        scales.append(ranges.scale)
        zeros.append(ranges.zero)
    return torch.cat(scales, 1), torch.cat(zeros, 1)


def ranges_of(target: Target, *, mse: bool) -> Any:
    """Neural Compressor's rule for the scales of a group, with the scales that are stored."""
    ranges = stored_ranges()()
    ranges.configure(
        {
            "dtype": "int",
            "bits": target.bits,
            "sym": target.symmetric,
            "group_size": target.group_size,
            "perchannel": True,
            "mse": mse,
            "use_double_quant": False,
            "double_quant_sym": False,
        }
    )
    ranges.stored = target.torch_scale_dtype
    return ranges


@cache
def stored_ranges() -> Any:
    """The class, made on first use: its base is in a package that may be missing."""
    from neural_compressor.torch.algorithms.weight_only.gptq import Quantizer

    class StoredRanges(Quantizer):  # type: ignore[misc, unused-ignore]
        """Scales as the kernels will read them."""

        stored: torch.dtype

        def find_params(self, x: Tensor, weight: bool = False) -> None:
            # Symmetric groups of one sign would get half the range they need.
            super().find_params(torch.cat((x, -x), 1) if self.sym else x, weight=weight)
            smallest = torch.finfo(self.stored).smallest_normal
            self.scale: Tensor = self.scale.to(self.stored).float().clamp_(min=smallest)

    return StoredRanges
