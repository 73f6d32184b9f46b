"""AWQ (Lin et al., 2023), computed by Neural Compressor.

Channels with large inputs are scaled up before rounding, and what gave them is scaled down: a norm,
or the rows of the matrix before. Then the range of each matrix is searched. Neural Compressor
searches both. Which module takes over which scales comes from the family's description. Three
things are ours: the scaled norms are rounded to the dtype of the checkpoint before the matrices are
scaled, so that nothing is lost where they meet; the searches round to the bits that are asked for
(the package says `num_bits` to a function that calls them `bits`, and so rounds to 4 always); and
the search of ranges sees the scaled inputs, where the package gives it those from before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.families.block import Block
from neuralchat_lite.quantization.blockwise import BlockResult, Blockwise
from neuralchat_lite.quantization.hqq import PACKAGES, as_stored
from neuralchat_lite.quantization.rtn import QuantizedMatrix
from neuralchat_lite.quantization.states import Samples
from neuralchat_lite.quantization.target import Target
from neuralchat_lite.quantization.torch_block import TorchBlock

PREFIX = "layers"  # of the one block, where the search looks for blocks


def absorbing(block: Block, names: set[str]) -> dict[str, list[str]]:
    """Module that takes over scales -> the quantized matrices whose inputs they scale.

    names: the matrices that are quantized
    Values go to the output unscaled only with as many value heads as heads, else several heads
    would ask for different scales of one row.
    """
    pairs: list[tuple[str, Sequence[Any]]] = [
        (block.attention_norm.name, block.qkv),
        (block.mlp_norm.name, block.gate_up),
    ]
    if len(block.qkv) == 3 and block.qkv[2].rows == block.output.cols:
        pairs.append((block.qkv[2].name, [block.output]))
    if len(block.gate_up) == 2:
        pairs.append((block.gate_up[1].name, [block.down]))
    found = {giver: [linear.name for linear in takers] for giver, takers in pairs}
    return {giver: takers for giver, takers in found.items() if set(takers) <= names}


class OneBlock(nn.Module):
    """A block in the place where Neural Compressor looks for a model's blocks."""

    def __init__(self, block: TorchBlock) -> None:
        super().__init__()
        self.layers = nn.ModuleList([block])


class ActivationAware(Blockwise):
    """The quantizer of algorithm "AWQ"."""

    algorithm = "AWQ"
    version = 1
    packages: Mapping[str, str] = PACKAGES

    def block(
        self, block: TorchBlock, targets: Sequence[Target], samples: Samples, seed: int
    ) -> BlockResult:
        refuse_ragged(self.algorithm, block, targets)
        names = {target.name for target in targets}
        absorbed = absorbing(block.block, names)
        searched = {name for takers in absorbed.values() for name in takers}
        if not searched:
            return nearest(block, targets, {})
        stored = {name: block.get_parameter(f"{name}.weight").clone() for name in absorbed}
        model = OneBlock(block)
        settings = {
            f"{PREFIX}.0.{target.name}": {
                "dtype": "int",
                "bits": target.bits,
                "group_size": target.group_size,
                "scheme": target.integer_scheme,
            }
            for target in targets
        }
        inputs = [[samples.inputs[part]] for part in samples.batches()]
        search = searcher()(
            model,
            example_inputs=torch.zeros(1),
            weight_config=settings,
            total_block_args=inputs,
            total_block_kwargs=[{"cos": samples.cos, "sin": samples.sin} for _ in inputs],
            absorb_layer_dict=dict(absorbed),
        )
        search.norm_dtype = self.norm_dtype
        with torch.no_grad(), right_bits():
            search.quantize(
                use_auto_scale=self.settings["use_auto_scale"],
                # Matrices with minima have their own search of ranges, in `nearest`.
                use_mse_search=self.settings["use_mse_search"]
                and any(not target.has_minima for target in targets),
                folding=True,
                return_int=False,
            )
        ranges: dict[str, Any] = {
            target.name: settings[f"{PREFIX}.0.{target.name}"].get("quantile", 1.0)
            for target in targets
        }
        result = nearest(block, targets, ranges)
        result.changed |= changed_tensors(block, stored, names)
        return result


def changed_tensors(
    block: TorchBlock, before: Mapping[str, Tensor], quantized: set[str]
) -> dict[str, Tensor]:
    """The tensors that took over scales and are not quantized, and biases beside them."""
    found = {}
    for name, old in before.items():
        module = block.get_submodule(name)
        weight, bias = module.weight, getattr(module, "bias", None)
        assert isinstance(weight, Tensor)
        if torch.equal(weight, old):
            continue
        if name not in quantized:
            found[f"{name}.weight"] = weight.data
        if isinstance(bias, Tensor):
            found[f"{name}.bias"] = bias.data
    return found


def nearest(
    block: TorchBlock, targets: Sequence[Target], ranges: Mapping[str, float]
) -> BlockResult:
    """Round what the block has now: by Neural Compressor's rule, with minima by ours.

    ranges: module -> share of the range of each group that is kept
    """
    from neural_compressor.torch.algorithms.weight_only.utility import quant_tensor

    matrices: dict[str, QuantizedMatrix] = {}
    for target in targets:
        weight = block.get_parameter(f"{target.name}.weight").data
        if target.has_minima:
            matrices[target.name] = target.with_minima(weight)
            continue
        _, scales, zeros = quant_tensor(
            weight.clone(),
            bits=target.bits,
            group_size=target.group_size,
            scheme=target.scheme,
            quantile=ranges.get(target.name, 1.0),
            return_int=True,
        )
        matrices[target.name] = coded(weight, scales, zeros, target)
    return BlockResult(matrices)


def coded(weight: Tensor, scales: Tensor, zeros: Tensor | None, target: Target) -> QuantizedMatrix:
    """The nearest codes for scales as they are stored.

    scales, zeros: [rows, groups]; theirs are symmetric around 0
    """
    cols = weight.shape[1]
    size = cols if target.group_size == -1 else target.group_size
    highest, middle = (1 << target.bits) - 1, 1 << (target.bits - 1)
    scales = as_stored(scales.float(), target)
    offsets = torch.full_like(scales, float(middle)) if zeros is None else zeros.float()
    group = torch.arange(cols) // size
    levels = (weight / scales[:, group]).round_() + offsets[:, group]
    return target.matrix(levels.clamp_(0, highest), scales, offsets)


def refuse_ragged(algorithm: str, block: TorchBlock, targets: Sequence[Target]) -> None:
    for target in targets:
        cols = block.get_parameter(f"{target.name}.weight").shape[1]
        if target.group_size != -1 and cols % target.group_size:
            raise ConfigError(
                f"algorithm={algorithm!r} needs full groups, but {target.module} has {cols} "
                f"columns in groups of {target.group_size}: use a smaller group_size, or 'GPTQ'"
            )


def searcher() -> Any:
    """The class, made on first use: its base is in a package that may be missing."""
    from neural_compressor.torch.algorithms.weight_only.awq import ActAwareWeightQuant

    class Search(ActAwareWeightQuant):  # type: ignore[misc, unused-ignore]
        """Only the search: the matrices are rounded afterwards, to the scales that are stored."""

        norm_dtype: torch.dtype

        def search_scale(self, *given: Any, **named: Any) -> dict[Any, Tensor]:
            found: dict[Any, Tensor] = super().search_scale(*given, **named)
            for matrices, scale in found.items():
                weight = self.model.get_parameter(f"{self.absorb_layer_dict[matrices]}.weight")
                if weight.dim() == 1:
                    found[matrices] = exact_scale(weight, scale, self.norm_dtype)
            self.scales = found
            return found

        def search_clip(self, name: str, matrices: Any, inputs: Any) -> None:
            for group, scale in getattr(self, "scales", {}).items():
                seen = inputs[group[0].removeprefix(f"{name}.")]
                seen["input"] = [values / scale for values in seen["input"]]
            super().search_clip(name, matrices, inputs)

        def apply_quantize_with_clip(self, return_int: bool = False) -> None:
            return None

    return Search


@contextlib.contextmanager
def right_bits() -> Iterator[None]:
    """Let the searches round to as many bits as they say."""
    from neural_compressor.torch.algorithms.weight_only import utility

    rounding = utility.quant_tensor

    def rounded(weight: Tensor, *, num_bits: int | None = None, **more: Any) -> Any:
        more.pop("data_type", None)
        return rounding(weight, **more, **({} if num_bits is None else {"bits": num_bits}))

    utility.quant_tensor = rounded
    try:
        yield
    finally:
        utility.quant_tensor = rounding


def exact_scale(norm: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The scales nearest to these by which a norm can be divided without rounding in its dtype."""
    smaller = (norm / scale).to(dtype).float()
    exact = norm / smaller
    return torch.where(exact.isfinite() & (exact > 0), exact, torch.ones_like(exact))
