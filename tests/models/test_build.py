"""A family that is described in this file alone is read, checked, quantized and run.

The toy differs from Llama in all that a description can say: names, biases, norms, scale, windows,
and gate and up in one matrix. Its oracle below spells the names out once more, and so fails where
the package uses another family's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import linear, silu

from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.errors import CheckpointError, UnsupportedModelError
from neuralchat_lite.families import table
from neuralchat_lite.families.architecture import HEAD, Names, Sizes
from neuralchat_lite.families.block import Block, Linear, Norm
from neuralchat_lite.families.config_values import Config
from neuralchat_lite.families.family import Family
from neuralchat_lite.kernels import reference
from neuralchat_lite.kernels.layout import PackedMatrix, dequantize
from neuralchat_lite.kernels.operations import Kernels
from neuralchat_lite.kernels.reference import ReferenceKernels
from neuralchat_lite.models.build import load_decoder
from neuralchat_lite.packed.format import open_packed
from neuralchat_lite.packed.quantize import quantize_checkpoint
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig

HEADS, KV_HEADS, DIM, EPS = 4, 2, 16, 1e-5  # as in the configuration that the fixture writes
WINDOWS = (5, None)
SCALE = 0.4  # 16 ** -0.5 would be 0.25


def toy_block(config: Config, sizes: Sizes) -> Block:
    hidden, mlp = sizes.hidden_size, sizes.intermediate_size
    return Block(
        attention_norm=Norm("ln_1", hidden),
        qkv=(
            Linear("attn.wq", sizes.query_size, hidden),
            Linear("attn.wk", sizes.kv_size, hidden),
            Linear("attn.wv", sizes.kv_size, hidden, has_bias=True),
        ),
        query_norm=Norm("attn.ln_q", sizes.head_dim),
        key_norm=Norm("attn.ln_k", sizes.head_dim),
        scale=config["attention_multiplier"],
        output=Linear("attn.wo", hidden, sizes.query_size, has_bias=True),
        mlp_norm=Norm("ln_2", hidden),
        gate_up=(Linear("ffn.w13", 2 * mlp, hidden, has_bias=True),),
        activation="silu",
        down=Linear("ffn.w2", hidden, mlp, has_bias=True),
    )


TOY = Family(
    Names("toy.", "wte", "h", "ln_f", "embed_out", ignored=("attn.mask",)),
    toy_block,
    windows=lambda config, layers: WINDOWS,
    max_positions=64,
)


@pytest.fixture
def write_toy(write_checkpoint, monkeypatch):
    """write(tied=False, change=None) -> folder; `change` gets the dictionary of tensors."""
    monkeypatch.setitem(table.FAMILIES, "toy", f"{__name__}:TOY")

    def write(tied=False, change=None):
        def tensors(found: dict[str, Tensor]) -> None:
            generator = torch.Generator().manual_seed(1)
            for name, tensor in sorted(found.items()):
                if ".ln_" in name:
                    tensor.uniform_(0.5, 1.5, generator=generator)
                else:
                    tensor.normal_(std=0.3, generator=generator)
            if change is not None:
                change(found)

        return write_checkpoint(
            dtype=torch.float32,
            tensors=tensors,
            model_type="toy",
            attention_multiplier=SCALE,
            tie_word_embeddings=tied,
        )

    return write


def oracle(weights: dict[str, Tensor], ids: Tensor, activation: Any = silu) -> Tensor:
    """[len(ids), vocab] logits of the toy, each position computed from all before it."""
    count = len(ids)
    turns = 10000.0 ** (-torch.arange(0, DIM, 2) / DIM)
    angles = torch.arange(count)[:, None] * turns
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    distance = torch.arange(count)[:, None] - torch.arange(count)

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weights[f"{name}.weight"]

    def project(x: Tensor, name: str) -> Tensor:
        return linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def rotate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    x = weights["toy.wte.weight"][ids]
    for index, window in enumerate(WINDOWS):
        block = f"toy.h.{index}"
        y = norm(x, f"{block}.ln_1")
        q = project(y, f"{block}.attn.wq").view(count, HEADS, DIM)
        k = project(y, f"{block}.attn.wk").view(count, KV_HEADS, DIM)
        v = project(y, f"{block}.attn.wv").view(count, KV_HEADS, DIM)
        q, k = rotate(norm(q, f"{block}.attn.ln_q")), rotate(norm(k, f"{block}.attn.ln_k"))
        k, v = (t.repeat_interleave(HEADS // KV_HEADS, dim=1) for t in (k, v))
        hidden = (distance < 0) | (distance >= (window or count))
        scores = SCALE * torch.einsum("qhd,khd->hqk", q, k)
        shares = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        heads = torch.einsum("hqk,khd->qhd", shares, v).reshape(count, -1)
        x = x + project(heads, f"{block}.attn.wo")
        gate, up = project(norm(x, f"{block}.ln_2"), f"{block}.ffn.w13").chunk(2, dim=-1)
        x = x + project(activation(gate) * up, f"{block}.ffn.w2")
    head = weights.get("embed_out.weight", weights["toy.wte.weight"])
    return linear(norm(x, "toy.ln_f"), head)


def logits(weights: Any, ids: Tensor, kernels: Kernels | None = None) -> Tensor:
    decoder = load_decoder(weights, compute_dtype="fp32", context_length=64, kernels=kernels)
    return decoder.forward(ids, decoder.new_cache(), all_logits=True)


@pytest.fixture
def ids():
    return torch.randint(0, 60, (20,), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kernels", [None, ReferenceKernels()], ids=["native", "reference"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_family_known_by_one_row_computes_what_its_description_says(
    write_toy, ids, tied, kernels
):
    folder = write_toy(tied)
    want = oracle(load_file(folder / "model.safetensors"), ids)
    got = logits(open_checkpoint(folder), ids, kernels)
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-4)


def test_the_gate_has_the_activation_of_its_description(write_toy, ids, monkeypatch):
    folder = write_toy()
    weights = open_checkpoint(folder)
    block = replace(weights.architecture.block, activation="relu")
    weights.architecture = replace(weights.architecture, block=block)
    monkeypatch.setitem(reference.ACTIVATIONS, "relu", torch.relu)
    want = oracle(load_file(folder / "model.safetensors"), ids, activation=torch.relu)
    got = logits(weights, ids, ReferenceKernels())
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kept", [[], ["lm_head"], ["attn.wq", "toy.h.1"]], ids=str)
def test_a_quantized_folder_of_such_a_family_runs_as_its_dequantized_weights(
    write_toy, ids, tmp_path, tied, kept
):
    config = WeightOnlyQuantConfig(modules_to_not_convert=kept)
    source = open_checkpoint(write_toy(tied))
    packed = open_packed(quantize_checkpoint(source, config, tmp_path / "packed"))
    weights = {}
    for spec in packed.architecture.tensors():
        is_head = spec.role == "lm_head"
        found = packed.weight(HEAD if is_head else spec.name)
        weight = dequantize(found) if isinstance(found, PackedMatrix) else found
        weights["embed_out.weight" if is_head else spec.name] = weight
    assert isinstance(packed.weight(HEAD), PackedMatrix) == (kept != ["lm_head"])
    assert isinstance(packed.weight("toy.h.0.attn.wk.weight"), PackedMatrix)
    torch.testing.assert_close(logits(packed, ids), oracle(weights, ids), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "toy.wte.weight",
        "toy.h.1.ln_2.weight",
        "toy.h.0.attn.ln_q.weight",
        "toy.h.1.attn.wv.bias",
        "toy.h.0.ffn.w13.weight",
        "toy.ln_f.weight",
        "embed_out.weight",
    ],
)
def test_a_tensor_that_is_missing_or_has_another_shape_is_named(write_toy, name):
    folder = write_toy(change=lambda found: found.pop(name))
    with pytest.raises(CheckpointError, match=f"lacks the tensor {name} "):
        open_checkpoint(folder)
    folder = write_toy(change=lambda found: found.update({name: torch.zeros(3)}))
    with pytest.raises(CheckpointError, match=rf"{name} has the shape \[3\]"):
        open_checkpoint(folder)


@pytest.mark.parametrize("extra", ["toy.h.0.attn.wq.bias", "toy.h.0.rotary_emb.inv_freq"])
def test_a_tensor_that_the_description_does_not_name_is_refused(write_toy, extra):
    folder = write_toy(change=lambda found: found.update({extra: torch.zeros(64)}))
    with pytest.raises(UnsupportedModelError, match=f"a toy decoder does not use, such as {extra}"):
        open_checkpoint(folder)


def test_what_a_family_ignores_may_be_there(write_toy, ids):
    plain = write_toy()
    more = write_toy(change=lambda found: found.update({"toy.h.0.attn.mask": torch.zeros(1)}))
    assert torch.equal(logits(open_checkpoint(more), ids), logits(open_checkpoint(plain), ids))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_checkpoint_may_lack_the_prefix_of_its_family(write_toy, ids, tied):
    def without_prefix(found: dict[str, Tensor]) -> None:
        for name in list(found):
            found[name.removeprefix("toy.")] = found.pop(name)

    folder, bare = write_toy(tied), write_toy(tied, change=without_prefix)
    assert "h.0.ln_1.weight" in load_file(bare / "model.safetensors")
    assert torch.equal(logits(open_checkpoint(bare), ids), logits(open_checkpoint(folder), ids))


def test_a_tied_head_that_is_stored_and_differs_is_named_as_its_family_calls_it(write_toy):
    folder = write_toy(
        tied=True, change=lambda found: found.update({"embed_out.weight": torch.zeros(60, 64)})
    )
    with pytest.raises(CheckpointError, match=r"embed_out\.weight is stored and differs"):
        open_checkpoint(folder)
