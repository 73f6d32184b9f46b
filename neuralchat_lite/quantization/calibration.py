"""What a calibrated algorithm sees of the texts: token ids, and a digest for the cache key."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Calibration:
    """Samples of token ids, all of one length.

    ids: [samples, length] int64
    """

    ids: Tensor

    @property
    def digest(self) -> str:
        """sha256 of the ids and their shape: equal samples calibrate equally."""
        shape = "x".join(map(str, self.ids.shape))
        return hashlib.sha256(shape.encode() + self.ids.numpy().tobytes()).hexdigest()
