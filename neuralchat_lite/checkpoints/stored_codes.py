"""Checkpoints that others quantized: what config.json says of their codes, and what holds them.

A format is a row of FORMATS. It says how the codes of one matrix are read from its tensors. What
cannot be held bit for bit, or is not known, is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from neuralchat_lite.errors import CheckpointError, UnsupportedModelError
from neuralchat_lite.families.config_values import Config
from neuralchat_lite.values import shown

GROUP_SIZES = (32, 64, 128, -1)
WEIGHT_DTYPES = {4: "int4", 8: "int8"}
ORDERS = {"g_idx", "weight_g_idx"}  # the tensors that give the group of each column
ZEROS = {"qzeros", "weight_zero_point"}
REMEDY = "use the original bf16, fp16 or fp32 checkpoint"


@dataclass(frozen=True)
class Codes:
    """One matrix as it is stored.

    levels: [rows, cols] uint8, from 0 to 2 ** bits - 1
    scales: [rows, groups]
    zeros: [rows, groups] int16, on the scale of levels; None: in the middle
    groups: [cols] int32, the group of each column, where they are not in order
    A weight is scale * (level - zero).
    """

    levels: Tensor
    scales: Tensor
    zeros: Tensor | None
    groups: Tensor | None = None


@dataclass(frozen=True)
class Layout:
    """How the matrices of a checkpoint are stored.

    name: of the format, for people
    ending: of the tensor that holds codes; parts: of those beside it, of which some may be missing
    zero_offset: added to stored zero points
    """

    name: str
    bits: int
    group_size: int
    symmetric: bool
    ending: str
    parts: tuple[str, ...]
    read: Callable[[Mapping[str, Tensor], Layout], Codes] = field(repr=False)
    zero_offset: int = 0

    @property
    def weight_dtype(self) -> str:
        return WEIGHT_DTYPES[self.bits]

    @property
    def required(self) -> list[str]:
        optional = ORDERS | (ZEROS if self.symmetric else set())
        return [part for part in self.parts if part not in optional]


Place = TypeVar("Place")


def parts_of(
    found: Mapping[str, Place], layout: Layout
) -> tuple[dict[str, Place], dict[str, dict[str, Place]]]:
    """The tensors of a checkpoint that are no codes, and those that are, by their matrix' name.

    Raises CheckpointError when a matrix lacks one.
    """
    split = {name: name.rpartition(".")[::2] for name in found}
    modules = {module for module, ending in split.values() if ending == layout.ending}
    plain: dict[str, Place] = {}
    parts: dict[str, dict[str, Place]] = {}
    for name, place in found.items():
        module, ending = split[name]
        if module in modules and ending in layout.parts:
            parts.setdefault(f"{module}.weight", {})[ending] = place
        else:
            plain[name] = place
    for matrix, has in parts.items():
        for part in layout.required:
            if part not in has:
                raise CheckpointError(
                    f"{matrix.removesuffix('weight')}{part} is missing, which {layout.name} stores "
                    f"beside {layout.ending}: download the model again"
                )
    return plain, parts


def unpacked(words: Tensor, bits: int) -> Tensor:
    """[rows, n] int32 -> [rows, n * 32 / bits] uint8: the lowest bits are the first value."""
    values = words.contiguous().view(torch.uint8)
    if bits == 8:
        return values
    return torch.stack((values & 15, values >> 4), -1).flatten(1)


def in_other_order(groups: Tensor | None, layout: Layout) -> Tensor | None:
    """The group of each column, [cols], where groups are not neighbours in order; else None.

    groups: as it is stored; all negative where the writer had no order
    """
    if groups is None or bool((groups < 0).all()):
        return None
    size = len(groups) if layout.group_size == -1 else layout.group_size
    plain = torch.arange(len(groups), dtype=groups.dtype) // size
    return None if torch.equal(groups, plain) else groups


# ---- GPTQ: codes packed along the inputs, [cols / pack, rows] ----

GPTQ_PARTS = ("qweight", "qzeros", "scales", "g_idx")


def read_gptq(tensors: Mapping[str, Tensor], layout: Layout) -> Codes:
    levels = unpacked(tensors["qweight"].t(), layout.bits)
    scales = tensors["scales"].t()
    zeros = unpacked(tensors["qzeros"], layout.bits).t().to(torch.int16) + layout.zero_offset
    return Codes(levels, scales, zeros, in_other_order(tensors.get("g_idx"), layout))


def gptq_layout(config: Config) -> Layout:
    """`checkpoint_format` "gptq" (v1) stores zero points less one, "gptq_v2" as they are."""
    version = config.get("checkpoint_format") or "gptq"
    offsets = {"gptq": 1, "gptq_v2": 0}
    if version not in offsets:
        raise unsupported(
            f"GPTQ with checkpoint_format {shown(version)}", "'gptq' and 'gptq_v2' are read"
        )
    refuse_settings_of_layers("GPTQ", config.get("dynamic"))
    where = settings_of("GPTQ", config, symmetric=config.get("sym", True))
    return Layout("GPTQ", *where, "qweight", GPTQ_PARTS, read_gptq, offsets[version])


# ---- AWQ: codes packed along the outputs, [cols, rows / 8], eight in an order of their own ----

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of a word holds output AWQ_ORDER[i]


def in_awq_order(words: Tensor) -> Tensor:
    values = unpacked(words, 4)
    eights = values.view(len(values), -1, 8)
    place = [AWQ_ORDER.index(output) for output in range(8)]
    return eights[..., place].flatten(1)


def read_awq(tensors: Mapping[str, Tensor], layout: Layout) -> Codes:
    levels = in_awq_order(tensors["qweight"]).t()
    zeros = in_awq_order(tensors["qzeros"]).t().to(torch.int16) if "qzeros" in tensors else None
    return Codes(levels, tensors["scales"].t(), zeros)


def awq_layout(config: Config) -> Layout:
    version = str(config.get("version") or "gemm").lower()
    if version != "gemm":
        raise unsupported(f"AWQ with version {shown(version)}", "'gemm' is read")
    where = settings_of("AWQ", config, symmetric=not config.get("zero_point", True))
    if where[0] != 4:
        raise unsupported(f"AWQ with {where[0]} bits", "4 are read")
    return Layout("AWQ", *where, "qweight", ("qweight", "qzeros", "scales"), read_awq)


# ---- AutoRound: one of the two above ----


def autoround_layout(config: Config) -> Layout:
    packing = str(config.get("packing_format") or "auto_round:auto_gptq")
    refuse_settings_of_layers("AutoRound", config.get("extra_config"))
    if config.get("act_bits") not in (None, 16, 32):
        raise unsupported("AutoRound with quantized activations", "weights alone may be quantized")
    where = settings_of("AutoRound", config, symmetric=config.get("sym", True))
    if packing in ("auto_round:auto_awq", "auto_round:awq"):
        return Layout("AutoRound", *where, "qweight", ("qweight", "qzeros", "scales"), read_awq)
    offsets = {"auto_round:auto_gptq": 1, "auto_round:gptqmodel": 0, "auto_round": 0}
    if packing not in offsets:
        raise unsupported(
            f"AutoRound with packing_format {shown(packing)}",
            f"{[*offsets, 'auto_round:auto_awq']} are read",
        )
    return Layout("AutoRound", *where, "qweight", GPTQ_PARTS, read_gptq, offsets[packing])


# ---- compressed-tensors: codes packed along the inputs, [rows, cols / pack] ----

COMPRESSED_PARTS = (
    "weight_packed",
    "weight_scale",
    "weight_zero_point",
    "weight_g_idx",
    "weight_shape",
)


def read_compressed(tensors: Mapping[str, Tensor], layout: Layout) -> Codes:
    rows, cols = (int(size) for size in tensors["weight_shape"])
    levels = unpacked(tensors["weight_packed"], layout.bits)[:rows, :cols]
    zeros = None
    if "weight_zero_point" in tensors:  # packed along the outputs
        zeros = unpacked(tensors["weight_zero_point"].t(), layout.bits).t()[:rows].to(torch.int16)
    order = in_other_order(tensors.get("weight_g_idx"), layout)
    return Codes(levels, tensors["weight_scale"], zeros, order)


def compressed_layout(config: Config) -> Layout:
    name = "compressed-tensors"
    form = config.get("format")
    if form != "pack-quantized":
        raise unsupported(f"{name} with format {shown(form)}", "'pack-quantized' is read")
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise unsupported(f"{name} with config_groups {shown(groups)}", "one group is read")
    (group,) = groups.values()
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict) or weights.get("type", "int") != "int":
        raise unsupported(f"{name} with weights {shown(weights)}", "integers are read")
    for activations in ("input_activations", "output_activations"):
        if group.get(activations) is not None:
            raise unsupported(f"{name} with {activations}", "weights alone may be quantized")
    strategy = weights.get("strategy")
    if strategy not in ("group", "channel"):
        raise unsupported(
            f"{name} with strategy {shown(strategy)}", "'group' and 'channel' are read"
        )
    said = {
        "bits": weights.get("num_bits"),
        "group_size": -1 if strategy == "channel" else weights.get("group_size"),
    }
    where = settings_of(name, said, symmetric=weights.get("symmetric", True))
    return Layout(name, *where, "weight_packed", COMPRESSED_PARTS, read_compressed)


# ---- the table ----

FORMATS: dict[str, Callable[[Config], Layout]] = {
    "gptq": gptq_layout,
    "awq": awq_layout,
    "auto-round": autoround_layout,
    "compressed-tensors": compressed_layout,
}
KEYS = ("quantization_config", "compression_config")


def layout_of(config: Config) -> Layout | None:
    """How the codes of a checkpoint are stored; None when it is not quantized, or by somebody whom
    FORMATS does not list. Raises UnsupportedModelError for a variant that is not read."""
    for key in KEYS:
        said = config.get(key)
        if isinstance(said, dict):
            made = FORMATS.get(str(said.get("quant_method")).replace("_", "-"))
            return None if made is None else made(said)
    return None


def without_layout(config: Config) -> dict[str, Any]:
    """config.json without what it says of codes."""
    return {name: value for name, value in config.items() if name not in KEYS}


def settings_of(name: str, config: Config, *, symmetric: Any) -> tuple[int, int, bool]:
    """(bits, group size, symmetric), checked."""
    bits, size = config.get("bits"), config.get("group_size")
    if bits not in WEIGHT_DTYPES or isinstance(bits, bool):
        raise unsupported(f"{name} with bits {shown(bits)}", "4 and 8 are read")
    if size not in GROUP_SIZES or isinstance(size, bool):
        raise unsupported(f"{name} with group_size {shown(size)}", f"{list(GROUP_SIZES)} are read")
    if not isinstance(symmetric, bool):
        raise CheckpointError(
            f"config.json says {shown(symmetric)} for whether codes are symmetric, expected true "
            "or false: download the file again"
        )
    return int(bits), int(size), symmetric


def refuse_settings_of_layers(name: str, said: Any) -> None:
    """Raise UnsupportedModelError for settings that differ from layer to layer. Layers that are not
    quantized are told by their tensors."""
    for pattern, changes in (said or {}).items() if isinstance(said, dict) else ():
        bits = changes.get("bits") if isinstance(changes, dict) else None
        unquantized = str(pattern).startswith("-:") or (isinstance(bits, int) and bits >= 16)
        if changes and not unquantized:
            raise unsupported(
                f"{name} with settings of its own for {shown(pattern)}", "all layers must have one"
            )


def unsupported(what: str, rule: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"config.json: {what} is not supported, {rule}: {REMEDY}")
