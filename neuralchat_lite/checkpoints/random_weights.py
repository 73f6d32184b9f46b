"""Random weights in any shape, so that the speed of a model can be measured without its 14 GB."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuralchat_lite.checkpoints.source import Source, largest_tensor
from neuralchat_lite.families.config_json import parse_architecture
from neuralchat_lite.files.digests import HashProgress


class RandomCheckpoint(Source):
    """Normally distributed weights (deviation 0.02) and norms of 1, from a config.json and a seed.

    Each tensor depends on its name and the seed alone, and is made when it is asked for.
    """

    def __init__(
        self, config: Mapping[str, Any], seed: int = 0, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        self.config = dict(config)
        self.seed = seed
        self.architecture = parse_architecture(config)
        self.name = f"random-{self.architecture.model_type}-{seed}"
        self.dtype_given = dtype
        self._shapes = {spec.name: (spec.shape, spec.role) for spec in self.architecture.tensors()}

    def weight(self, name: str) -> Tensor:
        name = self.architecture.stored_name(name)
        shape, role = self._shapes[name]
        if role == "norm":
            return torch.ones(shape, dtype=self.dtype_given)
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
        return torch.empty(shape, dtype=self.dtype_given).normal_(0, 0.02, generator=generator)

    def dtype(self, name: str) -> torch.dtype:
        assert self.architecture.stored_name(name) in self._shapes, name
        return self.dtype_given

    def identity(
        self, root: Path | None = None, progress: HashProgress | None = None
    ) -> dict[str, Any]:
        return {"random": self.seed, "dtype": str(self.dtype_given), "config": self.config}

    def held_bytes(self) -> int:
        return largest_tensor(self)

    def sidecars(self) -> dict[str, bytes]:
        return {"config.json": json.dumps(self.config, indent=2).encode()}
