"""What the calibrated algorithms must keep: the function of a block, and most of its accuracy."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import neuralchat_lite as ncl
from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.checkpoints.tokenizer import load_tokenizer
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.families.rope import RotaryTable
from neuralchat_lite.generation.prompt import encode_turns
from neuralchat_lite.kernels.layout import PackedMatrix, dequantize
from neuralchat_lite.packed.format import open_packed
from neuralchat_lite.packed.quantize import quantize_checkpoint
from neuralchat_lite.quantization.calibration import Calibration
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.quantization.torch_block import TorchBlock

ROOT = Path(__file__).parents[2]
NANO = ROOT / "examples/nano/model"
PACKAGES = {"GPTQ": "neural_compressor", "AUTOROUND": "auto_round"}
QUICK = {"AUTOROUND": {"iters": 5}, "TEQ": {"iters": 5}}
WriteCheckpoint = Callable[..., Path]
IDS = torch.randint(0, 60, (4, 32), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def require(algorithm: str) -> None:
    package = PACKAGES.get(algorithm, "neural_compressor")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install '.[calibration]'")


def hidden_states(source: Any, ids: Tensor) -> Tensor:
    """What comes out of the last block."""
    cos, sin = (table[: ids.shape[1]] for table in RotaryTable(source.architecture).upto(32))
    x: Tensor = source.weight(source.architecture.embedding_name)[ids].float()
    for index in range(source.architecture.layers):
        x = TorchBlock(source, index)(x, cos, sin)
    return x


def unpacked(folder: Path) -> Any:
    """A quantized folder as a source of the weights that kernels see."""
    packed = open_packed(folder)

    def weight(name: str) -> Tensor:
        found = packed.weight(name)
        return dequantize(found) if isinstance(found, PackedMatrix) else found

    return SimpleNamespace(architecture=packed.architecture, weight=weight)


@pytest.mark.parametrize("kv_heads", [2, 4], ids=["grouped", "equal"])
@pytest.mark.parametrize("algorithm", ["GPTQ", "AUTOROUND", "AWQ", "TEQ"])
def test_blocks_keep_their_function(
    algorithm: str, kv_heads: int, write_checkpoint: WriteCheckpoint, tmp_path: Path
) -> None:
    """In 8 bits almost nothing is lost, so a scale or a bias in the wrong place is seen."""
    require(algorithm)
    sizes = {"num_key_value_heads": kv_heads, "intermediate_size": 192}
    source = open_checkpoint(write_checkpoint(**sizes, dtype=torch.float32))
    settings = QUICK.get(algorithm)
    config = WeightOnlyQuantConfig("int8", algorithm=algorithm, algorithm_args=settings)
    calibration = Calibration(IDS[:3])
    made = quantize_checkpoint(source, config, tmp_path / "made", calibration=calibration)
    want, found = hidden_states(source, IDS), hidden_states(unpacked(made), IDS)
    assert (want - found).norm() < 0.02 * want.norm()


@pytest.mark.parametrize("algorithm", ["GPTQ", "AUTOROUND"])
def test_groups_that_are_not_full_are_filled(
    algorithm: str, write_checkpoint: WriteCheckpoint, tmp_path: Path
) -> None:
    require(algorithm)
    source = open_checkpoint(write_checkpoint(dtype=torch.float32))  # 172 columns
    settings = QUICK.get(algorithm)
    config = WeightOnlyQuantConfig("int8", algorithm=algorithm, algorithm_args=settings)
    made = quantize_checkpoint(source, config, tmp_path / "made", calibration=Calibration(IDS))
    want, found = hidden_states(source, IDS), hidden_states(unpacked(made), IDS)
    assert (want - found).norm() < 0.02 * want.norm()


@pytest.mark.parametrize("algorithm", ["AWQ", "TEQ"])
def test_groups_that_are_not_full_are_refused_where_they_must_be(
    algorithm: str, write_checkpoint: WriteCheckpoint, tmp_path: Path
) -> None:
    require(algorithm)
    source = open_checkpoint(write_checkpoint())
    config = WeightOnlyQuantConfig(algorithm=algorithm)
    with pytest.raises(ConfigError, match=r"down_proj has 172 columns in groups of 32: use a smal"):
        quantize_checkpoint(source, config, tmp_path / "made", calibration=Calibration(IDS))


ALL = ["GPTQ", "AUTOROUND", "AWQ", "TEQ", "HQQ"]
MIX = {
    "lm_head": {"weight_dtype": "int4", "group_size": 64},
    "model.layers.0.mlp.*": {"weight_dtype": "int8", "group_size": 64},
    "*.v_proj": {"scheme": "asym", "scale_dtype": "bf16"},
    "*.o_proj": {"group_size": -1},
}


def loss(folder: Path, want: Tensor) -> float:
    """How far the last block's output is off, as a part of it."""
    return float((want - hidden_states(unpacked(folder), IDS)).norm() / want.norm())


def made_with(
    algorithm: str, folder: Path, out: Path, **options: Any
) -> tuple[Path, WeightOnlyQuantConfig]:
    require(algorithm)
    config = WeightOnlyQuantConfig(
        algorithm=algorithm, algorithm_args=QUICK.get(algorithm), **options
    )
    texts = None if algorithm in ("HQQ", "RTN") else Calibration(IDS)
    return quantize_checkpoint(open_checkpoint(folder), config, out, calibration=texts), config


@pytest.mark.parametrize("algorithm", ALL)
def test_every_algorithm_gives_each_matrix_its_own_settings(
    algorithm: str, write_checkpoint: WriteCheckpoint, tmp_path: Path
) -> None:
    folder = write_checkpoint(intermediate_size=192, dtype=torch.float32)
    made, config = made_with(algorithm, folder, tmp_path / "made", overrides=MIX)
    packed = open_packed(made)
    for spec in packed.architecture.tensors():
        settings = config.settings_of(spec.module) if spec.is_matrix else None
        if settings is None:
            continue
        found = packed.weight("lm_head.weight" if spec.role == "lm_head" else spec.name)
        assert isinstance(found, PackedMatrix)
        dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16}
        assert (found.weight_dtype, found.group_size, found.scheme, found.scales.dtype) == (
            settings.weight_dtype,
            settings.group_size,
            settings.scheme,
            dtypes[settings.scale_dtype],
        )
    want = hidden_states(open_checkpoint(folder), IDS)
    nearest, _ = made_with("RTN", folder, tmp_path / "nearest", overrides=MIX, scheme="sym")
    assert loss(made, want) < 1.3 * loss(nearest, want)


@pytest.mark.parametrize("scheme", ["affine", "affine8"])
@pytest.mark.parametrize("algorithm", ["HQQ", "AWQ", "TEQ"])
def test_minima_lose_less_than_integer_zeros(
    algorithm: str, scheme: str, write_checkpoint: WriteCheckpoint, tmp_path: Path
) -> None:
    folder = write_checkpoint(intermediate_size=192, dtype=torch.float32)
    want = hidden_states(open_checkpoint(folder), IDS)
    whole, _ = made_with(algorithm, folder, tmp_path / "whole", scheme="asym")
    made, _ = made_with(algorithm, folder, tmp_path / "made", scheme=scheme)
    found = open_packed(made).weight("model.layers.1.mlp.down_proj.weight")
    assert isinstance(found, PackedMatrix) and found.scheme == scheme
    assert loss(made, want) < 0.96 * loss(whole, want)


def test_minima_of_hqq_hold_groups_far_from_zero(
    write_checkpoint: WriteCheckpoint, tmp_path: Path
) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"

    def off_zero(weights: dict[str, Tensor]) -> None:
        weights[name].view(64, -1, 32).add_(torch.linspace(-0.1, 0.1, 64).view(64, 1, 1))

    folder = write_checkpoint(dtype=torch.float32, tensors=off_zero)
    weight = open_checkpoint(folder).weight(name)
    errors = {}
    for scheme in ("asym", "affine8", "affine"):
        made, _ = made_with("HQQ", folder, tmp_path / scheme, scheme=scheme)
        errors[scheme] = float((unpacked(made).weight(name) - weight).norm())
    assert errors["affine"] < 0.8 * errors["asym"]
    assert errors["affine8"] < 0.99 * errors["asym"]


@pytest.mark.parametrize("algorithm", ["HQQ", "AWQ", "TEQ"])
def test_minima_of_8_bits_lose_almost_nothing(
    algorithm: str, write_checkpoint: WriteCheckpoint, tmp_path: Path
) -> None:
    folder = write_checkpoint(intermediate_size=192, dtype=torch.float32)
    want = hidden_states(open_checkpoint(folder), IDS)
    options = {"weight_dtype": "int8", "scheme": "affine"}
    made, _ = made_with(algorithm, folder, tmp_path / "made", **options)
    assert loss(made, want) < 0.02


def test_equal_weights_of_a_group_are_held_by_its_minimum(
    write_checkpoint: WriteCheckpoint, tmp_path: Path
) -> None:
    def flat(weights: dict[str, Tensor]) -> None:
        weights["model.layers.0.self_attn.q_proj.weight"][:, :32] = 0.25

    folder = write_checkpoint(tensors=flat)
    for scheme in ("affine", "affine8", "asym", "sym"):
        made, _ = made_with("HQQ", folder, tmp_path / scheme, scheme=scheme)
        weight = unpacked(made).weight("model.layers.0.self_attn.q_proj.weight")[:, :32]
        torch.testing.assert_close(weight, torch.full_like(weight, 0.25), rtol=0.05, atol=0)


@pytest.mark.parametrize("algorithm", ["GPTQ", "AUTOROUND"])
@pytest.mark.parametrize(
    "options",
    [
        {"scheme": "affine"},
        {"scheme": "affine8"},
        {"overrides": {"*.q_proj": {"scheme": "affine"}}},
        {"overrides": {"*": {"scheme": "affine8"}}},
    ],
    ids=str,
)
def test_minima_are_refused_where_an_algorithm_has_none(
    algorithm: str, options: dict[str, Any]
) -> None:
    message = rf"algorithm='{algorithm}' gives integer zero .*use scheme='asym', or one of \['RTN'"
    with pytest.raises(ConfigError, match=message):
        WeightOnlyQuantConfig(algorithm=algorithm, **options)


def test_the_head_beside_gptq_may_have_minima(
    write_checkpoint: WriteCheckpoint, tmp_path: Path
) -> None:
    """It has no block, and is rounded to nearest."""
    head = {"lm_head": {"weight_dtype": "int4", "scheme": "affine8"}}
    made, _ = made_with("GPTQ", write_checkpoint(), tmp_path / "made", overrides=head)
    found = open_packed(made).weight("lm_head.weight")
    assert isinstance(found, PackedMatrix) and found.scheme == "affine8"


def problems(first: int, last: int) -> list[list[dict[str, str]]]:
    """Solved problems of the kind that nano was trained on, of which none is in two such parts."""
    sys.path.insert(0, str(ROOT / "examples/nano"))
    try:
        from problems import held_out_problems  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    return [
        [*problem.messages(), {"role": "assistant", "content": problem.answer}]
        for problem in held_out_problems(last)[first:]
    ]


def divergence(model: ncl.Model, exact: ncl.Model, texts: list[list[int]]) -> float:
    """Mean KL in nats of the next token, against the exact model."""
    total, count = 0.0, 0
    for ids in texts:
        rows = [
            each.decoder.forward(ids, each.decoder.new_cache(len(ids)), all_logits=True)
            for each in (exact, model)
        ]
        want, found = (row.log_softmax(-1) for row in rows)
        total += float((want.exp() * (want - found)).sum())
        count += len(ids)
    return total / count


@pytest.mark.parametrize(
    "settings",
    [{}, {"act_order": True}, {"mse": True, "static_groups": True}, {"exact_inputs": True}],
    ids=str,
)
def test_gptq_wins_back_half_of_what_round_to_nearest_loses(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    require("GPTQ")
    tokenizer = load_tokenizer(NANO)
    texts = [encode_turns(each, tokenizer, None, asks=False) for each in problems(60, 66)]
    calibration = {"texts": problems(0, 60), "samples": 24, "length": 128}
    exact = ncl.load(NANO, dtype="fp32")
    layout = {"group_size": 128, "compute_dtype": "fp32"}
    nearest = ncl.load(NANO, layout, cache_dir=tmp_path)
    config = {**layout, "algorithm": "GPTQ", "algorithm_args": settings}
    ours = ncl.load(NANO, config, cache_dir=tmp_path, calibration=calibration)
    assert divergence(ours, exact, texts) < 0.5 * divergence(nearest, exact, texts)


def test_a_matrix_that_makes_up_for_its_inputs_is_the_solution_of_least_squares() -> None:
    require("GPTQ")
    from neuralchat_lite.quantization.gptq import Moments, made_up

    random = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 6, generator=random)
    exact = torch.randn(50, 6, generator=random)
    inputs = exact + 0.3 * torch.randn(50, 6, generator=random)
    moments = Moments(inputs.T @ inputs, 1, (exact - inputs).T @ inputs)
    want = torch.linalg.lstsq(inputs, exact @ weight.T).solution.T
    torch.testing.assert_close(made_up(weight, moments, 1e-6), want, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(want, weight, atol=0.05)
    assert made_up(weight, Moments(moments.hessian, 1), 0.01) is weight


def test_exact_inputs_are_those_of_unquantized_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("GPTQ")
    from neuralchat_lite.quantization import gptq

    source, seen = open_checkpoint(NANO), []
    real = gptq.second_moments

    def spy(block: Any, names: Any, samples: Any, exact: Any) -> Any:
        found = real(block, names, samples, exact)
        if "self_attn.q_proj" in names:
            seen.append((samples.inputs.clone(), samples.plain.clone(), dict(found)))
        return found

    monkeypatch.setattr(gptq, "second_moments", spy)
    settings = {"exact_inputs": True, "true_sequential": True}
    config = WeightOnlyQuantConfig(algorithm="GPTQ", group_size=64, algorithm_args=settings)
    quantize_checkpoint(source, config, tmp_path / "m", calibration=Calibration(IDS))
    inputs, plain, _ = seen[0]
    torch.testing.assert_close(inputs, plain)
    assert float(seen[0][2]["self_attn.q_proj"].drift.abs().max()) == 0
    inputs, plain, found = seen[1]
    cos, sin = (table[: IDS.shape[1]] for table in RotaryTable(source.architecture).upto(32))
    first = source.weight(source.architecture.embedding_name)[IDS].float()
    torch.testing.assert_close(plain, TorchBlock(source, 0)(first, cos, sin))
    norm = TorchBlock(source, 1).get_submodule("input_layernorm")
    x, e = norm(inputs).flatten(0, 1), norm(plain).flatten(0, 1)
    want = (e - x).T @ x * (2 / len(IDS))
    torch.testing.assert_close(found["self_attn.q_proj"].drift, want, rtol=1e-3, atol=1e-5)
    assert float(want.abs().max()) > 1e-3
