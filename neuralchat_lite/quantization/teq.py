"""TEQ (Cheng et al., 2023), computed by Neural Compressor.

As AWQ, it scales the inputs of matrices and lets the module before take over the inverse, but it
learns the scales by gradient descent through the rounding. The modules that learn, and the folding
afterwards, are Neural Compressor's. The loop is ours, which its documentation leaves to the user.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from neuralchat_lite.quantization.awq import (
    PREFIX,
    OneBlock,
    absorbing,
    changed_tensors,
    exact_scale,
    nearest,
    refuse_ragged,
)
from neuralchat_lite.quantization.blockwise import BlockResult, Blockwise
from neuralchat_lite.quantization.hqq import PACKAGES
from neuralchat_lite.quantization.states import Samples
from neuralchat_lite.quantization.target import Target
from neuralchat_lite.quantization.torch_block import TorchBlock


class TrainableEquivalent(Blockwise):
    """The quantizer of algorithm "TEQ"."""

    algorithm = "TEQ"
    version = 1
    packages: Mapping[str, str] = PACKAGES
    uses_wanted = True

    def block(
        self, block: TorchBlock, targets: Sequence[Target], samples: Samples, seed: int
    ) -> BlockResult:
        from neural_compressor.torch.algorithms.weight_only.teq import (
            TrainableEquivalentTransformation,
        )

        refuse_ragged(self.algorithm, block, targets)
        names = {target.name for target in targets}
        absorbed = absorbing(block.block, names)
        if not absorbed:
            return nearest(block, targets, {})
        stored = {name: block.get_parameter(f"{name}.weight").clone() for name in absorbed}
        transformation = TrainableEquivalentTransformation(
            OneBlock(block),
            {
                f"{PREFIX}.0.{target.name}": {
                    "bits": target.bits,
                    "group_size": target.group_size,
                    "scheme": target.integer_scheme,
                }
                for target in targets
            },
            {
                f"{PREFIX}.0.{giver}": [f"{PREFIX}.0.{taker}" for taker in takers]
                for giver, takers in absorbed.items()
            },
            folding=True,
        )
        transformation.add_tuning_scale()
        learn(transformation, block, samples, self.settings, seed)
        for giver, alpha in transformation.trained_alphas.items():
            before = stored[giver.removeprefix(f"{PREFIX}.0.")]
            if before.dim() == 1:
                scale = alpha.detach().clamp(min=1e-5)
                alpha.data = exact_scale(before, scale, self.norm_dtype)
        transformation.transform()
        result = nearest(block, targets, {})
        result.changed |= changed_tensors(block, stored, names)
        return result


def learn(
    transformation: Any,
    block: TorchBlock,
    samples: Samples,
    settings: Mapping[str, Any],
    seed: int,
) -> None:
    """Move the scales of channels to the least error of the block's output that is seen."""
    assert samples.wanted is not None
    scales = list(transformation.trained_alphas.values())
    optimizer = torch.optim.Adam(scales, lr=settings["lr"])
    order = random.Random(seed)
    for _ in range(settings["iters"]):
        count = len(samples.inputs)
        chosen = order.sample(range(count), min(settings["batch_size"], count))
        loss = F.mse_loss(samples.run(block, chosen), samples.wanted[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
