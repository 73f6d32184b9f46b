"""GPTQ (Frantar et al., 2022), computed by Neural Compressor.

Columns are rounded one after the other, and the error of each is moved to those that are not yet
rounded, as the inputs' second moments say. Neural Compressor's solver of one matrix does that.
Three things are ours: its scales are rounded to the stored dtype before the codes are chosen; with
static groups, where the solver returns only the last group's scale, all of them are computed again
by its own rule; and `exact_inputs`.

A matrix W gets inputs X from quantized matrices, where exact ones would have given E. What it
should give is W E. With H = X Xt, the matrix whose products with X are nearest to that is
W + W (E - X) Xt / H, and this is what is rounded. So errors of earlier matrices are made up for
(the aim of GPTAQ, Li et al., 2025; there column by column).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from neuralchat_lite.quantization.blockwise import BlockResult, Blockwise
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.quantization.rtn import QuantizedMatrix
from neuralchat_lite.quantization.states import Samples
from neuralchat_lite.quantization.target import Target
from neuralchat_lite.quantization.torch_block import TorchBlock


@dataclass(frozen=True)
class Moments:
    """Second moments of a matrix' inputs, over all samples: 2 / samples times the sums.

    hessian: X Xt, [cols, cols]
    samples: how many were seen
    drift: (E - X) Xt, [cols, cols]; None unless exact inputs are asked for
    """

    hessian: Tensor
    samples: int
    drift: Tensor | None = None


class GPTQuantizer(Blockwise):
    """The quantizer of algorithm "GPTQ"."""

    algorithm = "GPTQ"
    version = 1
    packages: Mapping[str, str] = {
        "neural_compressor": "neural-compressor-pt",
        "cpuinfo": "py-cpuinfo",
        "prettytable": "prettytable",
    }

    def __init__(self, config: WeightOnlyQuantConfig) -> None:
        super().__init__(config)
        self.uses_wanted = self.settings["exact_inputs"]

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
        exact = copy.deepcopy(block) if self.settings["exact_inputs"] else None
        for stage in stages:
            moments = second_moments(block, [group[0].name for group in stage], samples, exact)
            for group in stage:
                found = moments.pop(group[0].name)
                for target in group:
                    linear = block.get_submodule(target.name)
                    matrix = solved(linear, target, found, self.settings)
                    matrices[target.name] = matrix
                    linear.weight.data = target.dequantized(matrix)
        return BlockResult(matrices)


def second_moments(
    block: TorchBlock, names: Sequence[str], samples: Samples, exact: TorchBlock | None
) -> dict[str, Moments]:
    """The moments of each matrix, the Hessian as the solver collects it.

    exact: the block as it was before any matrix was rounded, for exact inputs
    """
    from neural_compressor.torch.algorithms.weight_only.gptq import GPTQ

    solvers, hooks = {}, []
    wanted: dict[str, Tensor] = {}  # [tokens, cols], of the batch in work
    drifts: dict[str, Tensor] = {}
    for name in names:
        linear = block.get_submodule(name)
        solver = solvers[name] = GPTQ(linear, linear.weight.data)

        def collect(
            module: nn.Module,
            inputs: tuple[Tensor, ...],
            output: Tensor,
            name: str = name,
            solver: Any = solver,
        ) -> None:
            solver.add_batch(inputs[0], output)
            if exact is not None:
                x = inputs[0].flatten(0, -2)
                drifts[name] = drifts.get(name, 0) + (wanted[name] - x).T @ x

        def keep(
            module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name
        ) -> None:
            wanted[name] = inputs[0].flatten(0, -2)

        hooks.append(linear.register_forward_hook(collect))
        if exact is not None:
            hooks.append(exact.get_submodule(name).register_forward_hook(keep))
    with torch.no_grad():
        for part in samples.batches():
            if exact is not None:
                assert samples.plain is not None
                replace(samples, inputs=samples.plain).run(exact, part)
            samples.run(block, part)
    for hook in hooks:
        hook.remove()
    return {
        name: Moments(
            solver.H,
            solver.nsamples,
            drifts[name] * (2 / solver.nsamples) if name in drifts else None,
        )
        for name, solver in solvers.items()
    }


def made_up(weight: Tensor, moments: Moments, percdamp: float) -> Tensor:
    """The matrix that makes up for the drift of its inputs. percdamp: as the solver damps H"""
    if moments.drift is None:
        return weight
    hessian = moments.hessian.clone()
    hessian.diagonal()[hessian.diagonal() == 0] = 1  # as the solver does
    hessian.diagonal().add_(percdamp * hessian.diagonal().mean())
    lower = torch.linalg.cholesky(hessian)
    return weight + torch.cholesky_solve((weight @ moments.drift).T.contiguous(), lower).T


@torch.no_grad()
def solved(
    linear: nn.Module, target: Target, moments: Moments, settings: Mapping[str, Any]
) -> QuantizedMatrix:
    from neural_compressor.torch.algorithms.weight_only.gptq import GPTQ

    weight = linear.weight.data
    assert isinstance(weight, Tensor)
    weight = made_up(weight, moments, settings["percdamp"])
    solver = GPTQ(linear, weight)
    solver.H, solver.nsamples = moments.hessian.clone(), moments.samples
    solver.quantizer = ranges_of(target, mse=settings["mse"])
    grouped = target.group_size != -1
    static = grouped and (settings["static_groups"] or settings["act_order"])
    scales = zeros = None
    if static:
        alive = weight.clone()
        alive[:, moments.hessian.diagonal() == 0] = 0  # as the solver does
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
