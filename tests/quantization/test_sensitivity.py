"""What each matrix costs: as a slow run of the whole model says, and resumed after a kill."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.checkpoints.random_weights import RandomCheckpoint
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.files.progress import Progress
from neuralchat_lite.files.safetensors_file import DTYPE_NAMES
from neuralchat_lite.models.build import load_decoder
from neuralchat_lite.packed.format import open_packed, packed_tensors
from neuralchat_lite.packed.quantize import quantize_checkpoint
from neuralchat_lite.quantization.calibration import Calibration
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.quantization.mixture import Cost
from neuralchat_lite.quantization.sensitivity import Measure, matrix_bytes, refuse_stored_codes

WriteCheckpoint = Callable[..., Path]
IDS = torch.randint(0, 60, (2, 24), generator=torch.Generator().manual_seed(1))
INT8 = {"weight_dtype": "int8"}
EMBEDDED = {"overrides": {"model.embed_tokens": "int8", "*.k_proj": {"group_size": 64}}}


def measure(folder: Path, asked: dict[str, Any] | None = None) -> Measure:
    return Measure(open_checkpoint(folder), Calibration(IDS), asked or {}, [INT8])


def logits(weights: Any) -> torch.Tensor:
    """[positions, vocab] log-probabilities, by the engine's own kernels in fp32."""
    decoder = load_decoder(weights, compute_dtype="fp32")
    rows = [decoder.forward(ids, decoder.new_cache(), all_logits=True) for ids in IDS]
    return torch.cat(rows).double().log_softmax(-1)


@pytest.mark.parametrize("asked", [{}, {"lm_head": "int4", "group_size": 64}, EMBEDDED], ids=str)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_divergence_of_a_configuration_is_that_of_the_engine(
    asked: dict[str, Any], tied: bool, write_checkpoint: WriteCheckpoint, tmp_path: Path
) -> None:
    folder = write_checkpoint(tie_word_embeddings=tied)
    config = WeightOnlyQuantConfig(**asked)
    made = quantize_checkpoint(open_checkpoint(folder), config, tmp_path / "made")
    want, found = logits(open_checkpoint(folder)), logits(open_packed(made))
    divergence = float((want.exp() * (want - found)).sum(-1).mean())
    assert measure(folder).whole(config) == pytest.approx(divergence, rel=1e-2)


def test_a_matrix_costs_what_a_run_of_the_whole_model_says(
    write_checkpoint: WriteCheckpoint, tmp_path: Path
) -> None:
    folder = write_checkpoint()
    measured = measure(folder)
    costs = measured.run(tmp_path / "costs.jsonl", "key")
    assert len(costs) == 2 * 7 + 1
    everything = [cost.module for cost in costs]
    for cost in costs:
        others = [module for module in everything if module != cost.module]
        for option in cost.options:
            settings = {"weight_dtype": option.settings.weight_dtype}
            alone = WeightOnlyQuantConfig(
                modules_to_not_convert=others, overrides={cost.module: settings}
            )
            assert alone.settings_of(cost.module) == option.settings
            assert option.kl == pytest.approx(measured.whole(alone), rel=1e-3, abs=1e-12)
        assert cost.options[0].settings == WeightOnlyQuantConfig().settings_of(cost.module)
        by_type = {option.settings.weight_dtype: option.kl for option in cost.options}
        assert 0 < by_type["int8"] < 0.1 * by_type["int4"]


def test_what_the_configuration_says_of_single_matrices_is_not_chosen_again(
    write_checkpoint: WriteCheckpoint,
) -> None:
    folder = write_checkpoint()
    asked = {
        "modules_to_not_convert": ["lm_head"],
        "overrides": {"model.layers.0.*": "int8"},
    }
    free = [spec.module for _, _, spec in measure(folder, asked).specs()]
    assert len(free) == 7 and all(module.startswith("model.layers.1.") for module in free)


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_after_the_last_block(
    write_checkpoint: WriteCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(num_hidden_layers=3)
    want = measure(folder).run(tmp_path / "whole.jsonl", "key")
    file, of_a_layer, seen = tmp_path / "parts.jsonl", Measure.costs, list[Any]()

    def costs(self: Measure, layer: int | None, matrices: Any) -> list[Cost]:
        if len(seen) == 2:
            raise Killed
        seen.append(layer)
        return of_a_layer(self, layer, matrices)

    monkeypatch.setattr(Measure, "costs", costs)
    with pytest.raises(Killed):
        measure(folder).run(file, "key")
    with file.open("a") as out:
        out.write('{"layer": 2, "co')  # half of a line, left by a kill
    seen.clear()
    steps: list[Progress] = []
    assert measure(folder).run(file, "key", steps.append) == want
    assert seen == [2, None]
    assert steps[0].done == 0 and steps[-1].done == steps[-1].total
    seen.clear()
    assert measure(folder).run(file, "key") == want and seen == []
    with pytest.raises(Killed):
        measure(folder).run(file, "another key")
    assert seen == [0, 1], "what was measured for another key is not taken"


@pytest.mark.parametrize("line", ["{", "[]", '{"layer": 0}', '{"layer": 0, "costs": [{}]}'])
def test_a_damaged_file_is_measured_again_and_said_so(
    line: str,
    write_checkpoint: WriteCheckpoint,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder, file = write_checkpoint(), tmp_path / "costs.jsonl"
    want = measure(folder).run(file, "key")
    file.write_text(f'{{"key": "key"}}\n{line}\n')
    assert measure(folder).run(file, "key") == want
    assert "is damaged: everything is measured again" in caplog.text
    assert measure(folder).run(file, "key") == want


@pytest.mark.parametrize(
    ("weight_dtype", "scheme"),
    [
        *itertools.product(["int4", "int8"], ["sym", "asym", "affine"]),
        ("int4", "affine8"),
    ],
)
@pytest.mark.parametrize("group_size", [32, 128, -1])
@pytest.mark.parametrize("scale_dtype", ["fp16", "fp32"])
def test_bytes_are_those_of_the_file(
    scheme: str, weight_dtype: str, group_size: int, scale_dtype: str, tiny_config: dict[str, Any]
) -> None:
    config = WeightOnlyQuantConfig(weight_dtype, None, group_size, scheme, scale_dtype)
    source = RandomCheckpoint(tiny_config)
    tensors = packed_tensors(
        source.architecture, config, lambda name: DTYPE_NAMES[source.dtype(name)]
    )
    for spec in source.architecture.tensors():
        if not spec.is_matrix:
            continue
        settings = config.settings_of(spec.module)
        assert settings is not None
        stored = [each.nbytes for each in tensors if each.name.rpartition(".")[0] == spec.module]
        biases = [each.nbytes for each in tensors if each.name == f"{spec.module}.bias"]
        assert matrix_bytes(settings, *spec.shape) == sum(stored) - sum(biases)


def test_an_algorithm_of_whole_blocks_and_stored_codes_are_refused(
    write_checkpoint: WriteCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint()
    with pytest.raises(ConfigError, match=r"algorithm='GPTQ' a whole block: measure with one of"):
        measure(folder, {"algorithm": "GPTQ"})
    source = open_checkpoint(folder)
    monkeypatch.setattr(source, "implied_options", lambda asked: {"weight_dtype": "int4"})
    with pytest.raises(ConfigError, match=r"holds codes: give the checkpoint"):
        refuse_stored_codes(source)


def test_what_is_noted_is_json(write_checkpoint: WriteCheckpoint, tmp_path: Path) -> None:
    measure(write_checkpoint()).run(tmp_path / "costs.jsonl", "key")
    rows = [json.loads(line) for line in (tmp_path / "costs.jsonl").read_text().splitlines()]
    assert rows[0] == {"key": "key"} and [row["layer"] for row in rows[1:]] == [0, 1, None]
