"""Mixed precision: measure what each matrix costs, and propose where bytes are best spent."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuralchat_lite.api import QuantizationOptions
from neuralchat_lite.errors import ConfigError, NeuralchatError
from neuralchat_lite.files.digests import digest_of
from neuralchat_lite.files.folder import unwritable
from neuralchat_lite.files.progress import hashing
from neuralchat_lite.files.progress_bar import ProgressOption, shown
from neuralchat_lite.generation.calibration_texts import CalibrationOption, texts_of, tokenized
from neuralchat_lite.kernels.leaving import at_work
from neuralchat_lite.loading import (
    Adapters,
    checked_root,
    find,
    open_with_tokenizer,
    options_of,
)
from neuralchat_lite.packed.cache import cache_root
from neuralchat_lite.quantization import mixture, open_quantizer
from neuralchat_lite.quantization.calibration import Calibration
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.quantization.mixture import Cost, Mixture
from neuralchat_lite.quantization.sensitivity import Measure, refuse_stored_codes
from neuralchat_lite.quantization.sensitivity_plot import draw
from neuralchat_lite.shortages import shortages
from neuralchat_lite.values import shown as quoted

SAMPLES, LENGTH = 4, 128  # as many again check the result
CANDIDATES = ("int8",)
UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Outcome:
    """What a configuration takes and costs.

    nbytes: of the matrices that could be chosen; bits_per_weight: of the same
    kl_sum: nats, the sum of what its matrices cost alone
    kl: nats, measured with all of them quantized, on the same tokens
    kl_elsewhere: the same on other pieces of the texts; None where there were none
    """

    nbytes: int
    bits_per_weight: float
    kl_sum: float
    kl: float
    kl_elsewhere: float | None


@dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` has found.

    costs: of each matrix, with all its options
    options: the proposed configuration, for `load` and `quantize`: what was asked for, with
        `overrides`
    proposed, configured: what it takes and costs, and what the given configuration does
    tokens: that were measured on
    """

    costs: tuple[Cost, ...]
    chosen: Mixture
    options: dict[str, Any]
    proposed: Outcome
    configured: Outcome
    tokens: int

    @property
    def overrides(self) -> dict[str, Any]:
        found: dict[str, Any] = self.options.get("overrides", {})
        return found

    def plot(self, file: str | os.PathLike[str]) -> Path:
        """Draw it into an SVG or PNG file. Raises ConfigError when matplotlib is missing."""
        return draw(
            self.costs,
            self.chosen,
            {"as configured": self.configured.kl, "proposed": self.proposed.kl},
            Path(file),
        )


@shortages()
@at_work()
def sensitivity(
    model: str | os.PathLike[str],
    quantization_config: QuantizationOptions = None,
    *,
    calibration: CalibrationOption,
    budget: float | str | None = None,
    kl: float | None = None,
    candidates: Sequence[str | Mapping[str, Any]] = CANDIDATES,
    adapters: Adapters | None = (),
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: ProgressOption = None,
) -> Sensitivity:
    """Measure what quantizing each matrix costs, and propose the cheapest mix under a budget.

    The cost of a matrix is the mean KL divergence of the next token, in nats, with this matrix
    alone quantized and all else as in the checkpoint, in fp32. The mix is chosen greedily, by
    divergence saved per byte, and then measured as a whole.

    model: a checkpoint, as in `load`
    quantization_config: the settings of all matrices for which nothing else is proposed; its
        overrides are kept
    calibration: texts as in `load`; 4 pieces of 128 tokens measure and 4 others check, unless
        "samples" and "length" say otherwise
    budget: bits per weight, such as 5.0, or bytes, such as "90MB", of all matrices; None: what the
        configuration takes
    kl: instead of a budget: the most divergence that the mix may have on the measured tokens
    candidates: other settings for a matrix, each a weight type or a mapping as in `overrides`

    What was measured stays in the folder `sensitivity` of the cache: a killed run goes on there,
    and another budget needs no measuring. Raises what `quantize` raises, and ConfigError for a
    budget that no mix meets.
    """
    asked = {**(options_of(quantization_config) or {})}
    asked.pop("compute_dtype", None)  # not a property of weights
    config = WeightOnlyQuantConfig(**asked)  # before a download
    tried = [{"weight_dtype": each} if isinstance(each, str) else each for each in candidates]
    for each in tried:
        WeightOnlyQuantConfig(**{**asked, "overrides": {"*": each}})
    limit = None if budget is None else budget_of(budget)
    if kl is not None and (limit is not None or not is_positive(kl)):
        raise ConfigError(
            f"kl must be a positive number of nats, and the only budget, got {quoted(kl)}: give kl "
            "or budget"
        )
    texts = texts_of(with_defaults(calibration))
    root = checked_root(cache_dir) or cache_root()
    found, tuned = find(model, adapters, revision, token)
    if found.packed:
        raise ConfigError(
            f"{found.folder} is quantized already: give the checkpoint that it was made from"
        )
    with shown(progress) as step:
        source, tokenizer = open_with_tokenizer(found, tuned)
        refuse_stored_codes(source)
        samples = tokenized(texts, tokenizer, source.architecture)
        assert samples is not None
        measured, other = halves(samples)
        measure = Measure(source, measured, asked, tried)
        key = digest_of(
            {
                "source": source.identity(root, hashing(step)),
                "texts": measured.digest,
                "settings": config.key_config(),
                "candidates": [sorted(each.items()) for each in tried],
                "quantizer": open_quantizer(config).identity.to_key(),
            }
        )
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", source.name).lstrip(".")[:80] or "model"
        file = root / "sensitivity" / f"{name}-{key[:12]}.jsonl"
        try:
            costs = measure.run(file, key, step)
        except OSError as error:
            if isinstance(error, NeuralchatError):
                raise
            raise unwritable(file, error) from error
        source.require_unchanged()
    check = None if other is None else Measure(source, other, asked, tried)
    if kl is not None:
        chosen = within_kl(costs, kl, measure, asked)
    else:
        chosen = mixture.within_bytes(costs, bytes_allowed(costs, limit))
    options = proposal(costs, chosen, measure, asked)
    return Sensitivity(
        tuple(costs),
        chosen,
        options,
        outcome(costs, chosen, WeightOnlyQuantConfig(**options), measure, check),
        outcome(costs, mixture.configured(costs), config, measure, check),
        measured.ids.numel(),
    )


def with_defaults(calibration: CalibrationOption) -> CalibrationOption:
    """Texts with the number and the length of samples that are measured, twice the number."""
    if calibration is None:
        raise ConfigError(
            "sensitivity needs texts to measure on, got none: give calibration=FILE "
            "(`--calibration FILE`), a text or JSONL file"
        )
    if isinstance(calibration, Mapping):
        given = {"samples": SAMPLES, "length": LENGTH, **calibration}
    else:
        name = "file" if isinstance(calibration, str | os.PathLike) else "texts"
        given = {name: calibration, "samples": SAMPLES, "length": LENGTH}
    if isinstance(given["samples"], int) and not isinstance(given["samples"], bool):
        given["samples"] *= 2
    return given


def halves(samples: Calibration) -> tuple[Calibration, Calibration | None]:
    """Every other piece, and those between them."""
    if len(samples.ids) == 1:
        return samples, None
    return Calibration(samples.ids[::2].contiguous()), Calibration(samples.ids[1::2].contiguous())


def is_positive(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
    )


def budget_of(given: Any) -> tuple[float, bool]:
    """A budget, and whether it is in bytes."""
    number, unit = given, None
    if isinstance(given, str):
        match = re.fullmatch(r"([0-9]*\.?[0-9]+) ?(B|kB|MB|GB)?", given.strip())
        number, unit = (float(match[1]), match[2]) if match else (None, None)
    if not is_positive(number):
        raise ConfigError(
            f"budget must be bits per weight such as 5.0, or bytes such as '90MB', got "
            f"{quoted(given)}: a unit is one of {list(UNITS)}"
        )
    return (number, False) if unit is None else (number * UNITS[unit], True)


def bytes_allowed(costs: Sequence[Cost], limit: tuple[float, bool] | None) -> int:
    if limit is None:
        return mixture.bytes_of(mixture.configured(costs))
    number, in_bytes = limit
    return int(number if in_bytes else number * sum(cost.weights for cost in costs) / 8)


def proposal(
    costs: Sequence[Cost], chosen: Mixture, measure: Measure, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """The options that quantize each matrix as it was chosen."""
    names = measure.architecture.names
    found = mixture.overrides_of(costs, chosen, asked, f"{names.base}{names.layers}.")
    options = {name: value for name, value in asked.items() if name != "overrides"}
    if found:
        options["overrides"] = found
    config = WeightOnlyQuantConfig(**options)
    for cost, option in zip(costs, chosen, strict=True):
        assert config.settings_of(cost.module) == option.settings, cost.module
    return options


def within_kl(
    costs: Sequence[Cost], kl: float, measure: Measure, asked: Mapping[str, Any]
) -> Mixture:
    """The first mixture along the greedy path that costs at most so much, as it is measured."""

    def measured(chosen: Mixture) -> float:
        return measure.whole(WeightOnlyQuantConfig(**proposal(costs, chosen, measure, asked)))

    path = list(mixture.along(costs))
    best = measured(path[-1])
    if best > kl:
        raise ConfigError(
            f"kl={kl:g} is not reached: the most accurate mix of these candidates costs "
            f"{best:.3g} nats; allow more, or give a more accurate candidate"
        )
    low, high = 0, len(path) - 1  # the mix at `high` is good enough
    while low < high:
        middle = (low + high) // 2
        if measured(path[middle]) <= kl:
            high = middle
        else:
            low = middle + 1
    return path[high]


def outcome(
    costs: Sequence[Cost],
    chosen: Mixture,
    config: WeightOnlyQuantConfig,
    measure: Measure,
    check: Measure | None,
) -> Outcome:
    size = mixture.bytes_of(chosen)
    return Outcome(
        size,
        8 * size / sum(cost.weights for cost in costs),
        mixture.kl_of(chosen),
        measure.whole(config),
        None if check is None else check.whole(config),
    )
