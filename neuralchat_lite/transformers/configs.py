"""The quantization configurations of intel-extension-for-transformers (ITREX) 1.4.

ITREX 1.3 has one WeightOnlyQuantConfig; 1.4 has one class for each algorithm. The classes here have
the names and defaults of 1.4, and become a WeightOnlyQuantConfig.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from neuralchat_lite.errors import ConfigError
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.quantization.levels import LEVELS
from neuralchat_lite.values import shown, suggestion

# ITREX's own formats, for scripts that give bits alone.
WEIGHT_DTYPES = {4: "int4_clip", 8: "int8"}


@dataclass
class LegacyConfig:
    """The options of all configurations. Raises ConfigError for invalid values.

    bits: 4 or 8; None to follow weight_dtype
    group_size: 32, 64, 128, or -1 for a whole row
    weight_dtype, compute_dtype, scale_dtype: as in WeightOnlyQuantConfig, "auto" included. Without
        one, 4 bits are ITREX's "int4_clip", with its numbers; "int4" is this library's own, whose
        scales are searched for
    llm_int8_skip_modules: modules_to_not_convert of WeightOnlyQuantConfig
    sym: symmetric codes around zero
    overrides: of WeightOnlyQuantConfig: other settings of single matrices
    use_double_quant, mse_range, use_quant ...: as in WeightOnlyQuantConfig, which refuses those
        that would change the weights and warns about those without effect
    """

    bits: int | None = None
    group_size: int = 32
    compute_dtype: Any = None
    weight_dtype: Any = None
    scale_dtype: Any = None
    sym: bool = True
    mse_range: bool = False
    use_double_quant: bool = False
    double_quant_scale_dtype: Any = None
    use_ggml: bool = False
    use_quant: bool = True
    use_neural_speed: bool = False
    layer_wise: bool = False
    llm_int8_skip_modules: list[str] | None = None
    overrides: Any = None

    algorithm: ClassVar[str]
    default_bits: ClassVar[int] = 4

    def __post_init__(self) -> None:
        asked = self.options(skip_algorithm=True)["weight_dtype"]
        named = None if self.weight_dtype is None else LEVELS[asked].bits
        if self.bits is None:
            self.bits = named or self.default_bits
        if self.bits not in WEIGHT_DTYPES:
            raise ConfigError(
                f"bits must be 4 or 8, got {shown(self.bits)}: 4 takes half the memory"
            )
        if named not in (None, self.bits):
            raise ConfigError(
                f"bits={self.bits} and weight_dtype={shown(self.weight_dtype)} contradict each "
                "other: give one of them"
            )
        if not isinstance(self.sym, bool):
            raise ConfigError(
                f"sym must be True or False, got {shown(self.sym)}: True is symmetric"
            )

    def settings(self) -> dict[str, Any]:
        """The equivalent `algorithm_args`."""
        return {}

    def symmetric(self) -> bool:
        return self.sym

    def options(self, *, skip_algorithm: bool = False) -> dict[str, Any]:
        """The equivalent options of WeightOnlyQuantConfig, which checks them."""
        plain = {field.name: field.default for field in dataclasses.fields(LegacyConfig)}
        settings = {} if skip_algorithm else self.settings()
        legacy = {
            name: getattr(self, name)
            for name in ("mse_range", "use_double_quant", "use_ggml", "use_quant")
            if getattr(self, name) != plain[name]
            and not (name == "mse_range" and "use_mse_search" in self.settings())
        }
        config = WeightOnlyQuantConfig(
            weight_dtype=self.weight_dtype
            or WEIGHT_DTYPES.get(self.bits or self.default_bits, "int4_clip"),
            compute_dtype=self.compute_dtype,
            scale_dtype=self.scale_dtype,
            group_size=self.group_size,
            scheme="sym" if self.symmetric() else "asym",
            algorithm="RTN" if skip_algorithm else self.algorithm,
            algorithm_args=settings or None,
            modules_to_not_convert=self.llm_int8_skip_modules or None,
            overrides=self.overrides,
            **legacy,
        )
        return config.to_dict()

    def to_weight_only(self) -> WeightOnlyQuantConfig:
        """The equivalent configuration."""
        return WeightOnlyQuantConfig(**self.options())

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"quant_method": self.algorithm.lower()}

    def to_diff_dict(self) -> dict[str, Any]:
        """The options that differ from the defaults."""
        default = type(self)().to_dict()
        return {name: value for name, value in self.to_dict().items() if value != default[name]}

    def to_json_string(self, use_diff: bool = True) -> str:
        options = self.to_diff_dict() if use_diff else self.to_dict()
        # Only these keys: the order of overrides counts.
        return json.dumps(dict(sorted(options.items())), indent=2, default=str) + "\n"

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> LegacyConfig:
        """The inverse of `to_dict` and `to_diff_dict`. Raises ConfigError for unknown options."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in (*known, "quant_method"):
                raise ConfigError(
                    f"{name!r} is not an option of {cls.__name__}{suggestion(name, known)}: "
                    f"expected one of {known}"
                )
        return cls(**{name: value for name, value in options.items() if name in known})


@dataclass
class RtnConfig(LegacyConfig):
    """Round to nearest."""

    algorithm: ClassVar[str] = "RTN"


@dataclass
class CalibratedConfig(LegacyConfig):
    """The options of algorithms that calibrate on texts.

    tokenizer: accepted; the model's own is used
    dataset: a text or JSONL file, a list of texts, or the name of a data set on the hub
    nsamples, seq_len: how many pieces of the texts are used, and the tokens of each
    batch_size: accepted; blocks see as many tokens at once as suits the CPU
    """

    tokenizer: Any = None
    dataset: Any = "NeelNanda/pile-10k"
    nsamples: int = 128
    seq_len: int = 2048
    batch_size: int = 8

    def to_calibration(self) -> dict[str, Any]:
        """The equivalent `calibration` of `neuralchat_lite.load`."""
        kind = "file" if isinstance(self.dataset, str | os.PathLike) else "texts"
        length = getattr(self, "max_input_length", None) or self.seq_len
        return {kind: self.dataset, "samples": self.nsamples, "length": length}


@dataclass
class GPTQConfig(CalibratedConfig):
    """GPTQ. With desc_act, groups are static: others cannot be stored without moving columns."""

    algorithm: ClassVar[str] = "GPTQ"

    desc_act: bool = False
    damp_percent: float = 0.1
    blocksize: int = 128
    max_input_length: int | None = None
    static_groups: bool = False
    true_sequential: bool = False

    def settings(self) -> dict[str, Any]:
        return {
            "act_order": self.desc_act,
            "percdamp": self.damp_percent,
            "block_size": self.blocksize,
            "static_groups": self.static_groups,
            "true_sequential": self.true_sequential,
        }


@dataclass
class AwqConfig(CalibratedConfig):
    """AWQ. zero_point decides the scheme, and `sym` has no effect, as in ITREX."""

    algorithm: ClassVar[str] = "AWQ"
    default_bits: ClassVar[int] = 8

    zero_point: bool = True

    def settings(self) -> dict[str, Any]:
        return {"use_mse_search": self.mse_range}

    def symmetric(self) -> bool:
        return not self.zero_point


@dataclass
class TeqConfig(CalibratedConfig):
    """TEQ. absorb_to_layer is accepted: the model's own description says it."""

    algorithm: ClassVar[str] = "TEQ"
    default_bits: ClassVar[int] = 8

    absorb_to_layer: Any = None


@dataclass
class AutoRoundConfig(CalibratedConfig):
    algorithm: ClassVar[str] = "AUTOROUND"

    group_size: int = 128
    sym: bool = False
    nsamples: int = 512
    iters: int = 200
    lr: float | None = None
    minmax_lr: float | None = None
    enable_quanted_input: bool = True
    disable_quanted_input: bool | None = None

    def settings(self) -> dict[str, Any]:
        quanted = self.enable_quanted_input and not self.disable_quanted_input
        return {
            "iters": self.iters,
            "lr": self.lr,
            "minmax_lr": self.minmax_lr,
            "batch_size": self.batch_size,
            "enable_quanted_input": quanted,
        }
