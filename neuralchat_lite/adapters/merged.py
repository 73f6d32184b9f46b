"""A checkpoint with adapters merged into it, tensor by tensor, as it is read.

W' = W + sum over adapters of scale * B @ A (arXiv:2106.09685), added up in fp32 and rounded once
to the dtype of W. PEFT's own merge rounds after each adapter (and each product too, where it keeps
the adapter in half precision); the two differ by those roundings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuralchat_lite.adapters.adapter import Adapter
from neuralchat_lite.checkpoints.finite import all_finite, not_finite
from neuralchat_lite.checkpoints.source import Source, files_identity, largest_tensor, read_files
from neuralchat_lite.errors import CheckpointError
from neuralchat_lite.files.digests import HashProgress
from neuralchat_lite.files.names import CHAT_TEMPLATES, TOKENIZER

SLAB_WEIGHTS = 1 << 20  # 4 MB of fp32 at a time, whatever the size of the matrix


class MergedCheckpoint(Source):
    """A checkpoint with adapters merged into it, in order. Each tensor is merged when it is read.

    It reads like a `Checkpoint`. Tensors that no adapter changes are the base's own.
    """

    def __init__(
        self, base: Source, adapters: Sequence[Adapter], slab_weights: int = SLAB_WEIGHTS
    ) -> None:
        """slab_weights: about how many weights one piece of a matrix has"""
        self.base = base
        self.merged = tuple(adapters)
        self.adapters = tuple(each.hub[0] if each.hub else each.name for each in adapters)
        self.architecture = base.architecture
        self.slab_weights = slab_weights
        self.name = "_".join([base.name, *(adapter.name for adapter in adapters)])

    def dtype(self, name: str) -> torch.dtype:
        return self.base.dtype(name)

    def weight(self, name: str) -> Tensor:
        """The merged tensor of this Hugging Face name, in the base's dtype.

        Raises CheckpointError when it is not finite: the base is damaged, or the sum is beyond
        the largest number of its dtype.
        """
        weight = self.base.weight(name)
        module = name.removesuffix(".weight")
        factors = [adapter.factors(module) for adapter in self.merged if module in adapter.modules]
        if not factors:
            return weight
        merged = torch.empty(weight.shape, dtype=weight.dtype)
        step = max(1, self.slab_weights // weight.shape[1])
        for first in range(0, weight.shape[0], step):
            rows = slice(first, first + step)
            total = weight[rows].to(torch.float32, copy=True)
            for a, b, scale in factors:
                total.addmm_(b[rows], a, alpha=scale)
            merged[rows] = total
            if not all_finite(merged[rows]):
                raise self.overflow(name, weight[rows], first)
        return merged

    def overflow(self, name: str, piece: Tensor, first: int) -> CheckpointError:
        if not all_finite(piece):
            return not_finite(name, piece, first)
        return CheckpointError(
            f"{name}: merged with {', '.join(adapter.name for adapter in self.merged)}, it has a "
            f"value beyond the range of {str(piece.dtype).removeprefix('torch.')}: use adapters of "
            "this base, or a base in bf16 or fp32"
        )

    def identity(
        self, root: Path | None = None, progress: HashProgress | None = None
    ) -> dict[str, Any]:
        adapters = [
            files_identity(adapter.files(), adapter.hub, root, progress) for adapter in self.merged
        ]
        return {**self.base.identity(root, progress), "adapters": adapters}

    def held_bytes(self) -> int:
        return self.base.held_bytes() + largest_tensor(self)

    def sidecars(self) -> dict[str, bytes]:
        """The configuration of the base, and one tokenizer: that of the last adapter that has
        one, else the base's. Its files come from one folder, but a later adapter with only a
        chat template replaces the template."""
        found = self.base.sidecars()
        others = {name: data for name, data in found.items() if name not in TOKENIZER}
        chosen = {name: data for name, data in found.items() if name in TOKENIZER}
        for adapter in self.merged:
            own = read_files(adapter.tokenizer_files())
            if not own:
                continue
            if own.keys() <= set(CHAT_TEMPLATES):
                own = {name: chosen[name] for name in chosen if name not in CHAT_TEMPLATES} | own
            chosen = own
        return others | {name: chosen[name] for name in TOKENIZER if name in chosen}

    def require_unchanged(self) -> None:
        self.base.require_unchanged()
        for adapter in self.merged:
            for file in adapter.files():
                file.require_unchanged()

    @property
    def tokenizer_origin(self) -> Path | None:
        """The folder of the last adapter that has a tokenizer; None when it is the base's."""
        bringing = [
            adapter
            for adapter in self.merged
            if not {file.name for file in adapter.tokenizer_files()} <= set(CHAT_TEMPLATES)
        ]
        return bringing[-1].folder if bringing else None
