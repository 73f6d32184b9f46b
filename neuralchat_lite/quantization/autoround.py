"""AutoRound (Cheng et al., 2023), computed by the package auto-round.

For each weight it learns whether to round up or down, and for each group how far its range is
shrunk, by signed gradient descent on the error of the block's output. The rounding with its
gradients, the optimizer and the learning rates are auto-round's. The loop around them is ours,
because auto-round's own loop wants the whole model of transformers in memory.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuralchat_lite.quantization.blockwise import BlockResult, Blockwise
from neuralchat_lite.quantization.rtn import QuantizedMatrix
from neuralchat_lite.quantization.states import Samples
from neuralchat_lite.quantization.target import Target
from neuralchat_lite.quantization.torch_block import TorchBlock

LOSS_SCALE = 1000.0  # auto-round's; signs of gradients do not depend on it
UNQUANTIZED = 16  # bits


class AutoRound(Blockwise):
    """The quantizer of algorithm "AUTOROUND"."""

    algorithm = "AUTOROUND"
    version = 1
    packages: Mapping[str, str] = {"auto_round": "auto-round", "cpuinfo": "py-cpuinfo"}
    uses_wanted = True

    def block(
        self, block: TorchBlock, targets: Sequence[Target], samples: Samples, seed: int
    ) -> BlockResult:
        from auto_round.wrapper import unwrapper_block, wrapper_block

        described = {target.name: target for target in targets}
        for linear in block.block.linears:
            describe(block.get_submodule(linear.name), described.get(linear.name))
        wrapper_block(
            block,
            self.settings["enable_minmax_tuning"],
            False,  # norms and biases stay
            enable_torch_compile=False,
            device="cpu",
        )
        best = learned(block, samples, self.settings, seed)
        unwrapper_block(block, best)
        return BlockResult(
            {target.name: matrix_of(block.get_submodule(target.name), target) for target in targets}
        )


def describe(linear: nn.Module, target: Target | None) -> None:
    """Give a linear layer the attributes by which auto-round knows what to do with it."""
    said: dict[str, Any] = {"bits": UNQUANTIZED, "act_bits": UNQUANTIZED, "data_type": "int"}
    if target is not None:
        said |= {
            "bits": target.bits,
            "group_size": target.group_size,
            "sym": target.symmetric,
            "scale_dtype": target.torch_scale_dtype,
        }
    for name, value in said.items():
        setattr(linear, name, value)


def learned(
    block: TorchBlock, samples: Samples, settings: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """The roundings and ranges with the least error that was seen, by module."""
    from auto_round.algorithms.quantization.sign_round.sign_sgd import SignSGD
    from auto_round.compressors.utils import collect_best_params

    assert samples.wanted is not None
    iterations = settings["iters"]
    rate = settings["lr"] or 1.0 / iterations
    rates = {"value": rate, "ranges": settings["minmax_lr"] or rate}
    values: dict[str, list[Tensor]] = {"value": [], "ranges": []}
    for module in block.modules():
        params: Any = getattr(module, "params", None)
        if params is not None:
            for name, value in params.items():
                values["value" if name == "value" else "ranges"].append(value)
    groups = [{"params": found, "lr": rates[kind]} for kind, found in values.items() if found]
    optimizer = SignSGD(groups, lr=rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LinearLR(
        optimizer, start_factor=1.0, end_factor=0.0, total_iters=iterations
    )
    order = random.Random(seed)
    least, best = float("inf"), {}
    for _ in range(iterations):
        count = len(samples.inputs)
        chosen = order.sample(range(count), min(settings["batch_size"], count))
        output = samples.run(block, chosen)
        loss = F.mse_loss(output, samples.wanted[chosen])
        error = loss.item()
        if error < least:
            least, best = error, collect_best_params(block)
        (loss * LOSS_SCALE).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return best


def matrix_of(linear: Any, target: Target) -> QuantizedMatrix:
    """What auto-round left in a layer: weights that are products of scales and levels."""
    rows, cols = linear.weight.shape
    scales = linear.scale.float().view(rows, -1)
    middle = float(1 << (target.bits - 1))
    zeros = torch.full_like(scales, middle) if target.symmetric else linear.zp.float()
    group = torch.arange(cols) // (cols if target.group_size == -1 else target.group_size)
    levels = linear.weight.detach() / scales[:, group] + zeros[:, group]
    return target.matrix(levels, scales, zeros)
