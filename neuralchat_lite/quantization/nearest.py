"""The quantizer of algorithm "RTN": each weight gets the nearest code for the scale of its group.

What sets the scale is the weight type's affair: for "int4" a search for the least squared error
(search.py), for all others the largest weight (rtn.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from neuralchat_lite.checkpoints.source import Source
from neuralchat_lite.families.architecture import TensorSpec
from neuralchat_lite.quantization import rtn, search
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.quantization.quantizer import PackedSlab, Quantizer, QuantizerIdentity
from neuralchat_lite.quantization.schemes import SEARCHED


class RoundToNearest(Quantizer):
    """See `quantizer.Quantizer`."""

    def __init__(self, config: WeightOnlyQuantConfig) -> None:
        self.config = config

    @property
    def identity(self) -> QuantizerIdentity:
        # Configurations without a search have the identity that they had before there was one.
        settings = {"search": search.VERSION} if self.config.searches() else {}
        return QuantizerIdentity("rtn", rtn.VERSION, settings)

    def slabs(self, source: Source, spec: TensorSpec) -> Iterator[PackedSlab]:
        settings = self.config.settings_of(spec.module)
        assert settings is not None, f"{spec.module} stays as it is"
        options = asdict(settings)
        weight = source.weight(spec.name)
        if options["weight_dtype"] == SEARCHED:
            del options["weight_dtype"]
            return search.packed_search(weight, **options, name=spec.name)
        return rtn.packed_rtn(weight, **options, name=spec.name)
