"""A GGUF file as a source: its tensors, configuration and tokenizer, or a refusal by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuralchat_lite.checkpoints import open_source
from neuralchat_lite.checkpoints.gguf.names import gguf_name, reordered
from neuralchat_lite.checkpoints.gguf.source import GGUFSource, open_gguf
from neuralchat_lite.errors import CheckpointError, UnsupportedModelError
from neuralchat_lite.kernels.layout import dequantize

from ..made_gguf import CONFIG, interleaved, stored_name, write_gguf

gguf = pytest.importorskip("gguf", reason="needs the gguf package: pip install gguf")

EXACT = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K")


def meant(source: GGUFSource, name: str) -> torch.Tensor:
    """The fp32 weights of a matrix, from its codes where it has some."""
    packed = source.packed(name)
    return source.weight(name).float() if packed is None else dequantize(packed)


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_every_tensor_is_what_the_package_dequantizes(
    tmp_path: Path, kind: str, model_type: str
) -> None:
    config = CONFIG | {"model_type": model_type}
    wanted = write_gguf(tmp_path / "m.gguf", lambda name: kind, config)
    source = open_source(tmp_path / "m.gguf")
    assert isinstance(source, GGUFSource)
    assert {spec.name for spec in source.architecture.tensors()} == wanted.keys()
    for name, weight in wanted.items():
        assert torch.equal(source.weight(name).float(), weight), name
        if weight.ndim == 2:
            assert torch.equal(meant(source, name), weight), name
    assert source.losses() == {}


def test_q6_k_says_what_it_lost_matrix_by_matrix(tmp_path: Path) -> None:
    wanted = write_gguf(tmp_path / "m.gguf", lambda name: "Q6_K")
    source = open_gguf(tmp_path / "m.gguf")
    module = "model.layers.0.self_attn.q_proj"
    found, right = meant(source, f"{module}.weight"), wanted[f"{module}.weight"]
    error = (found - right).square().sum() / right.square().sum()
    assert source.losses() == {module: pytest.approx(float(error), rel=1e-3)}
    assert 0 < error < 3e-5


def test_names_and_rows_are_those_of_llama_cpp(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", lambda name: "F32", CONFIG | {"model_type": "qwen3"})
    for spec in open_gguf(tmp_path / "m.gguf").architecture.tensors():
        assert gguf_name(spec.name) == stored_name(spec.name)
    rows = np.arange(64 * 3).reshape(64, 3)
    for heads in (1, 2, 8):
        assert np.array_equal(reordered(interleaved(rows, heads), heads), rows)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 1)
    for module in ("model.embed_tokens", "model.layers.0.self_attn.k_norm", "lm_head"):
        assert gguf_name(f"{module}.weight") == f"{names.get_name(module)}.weight"


def test_config_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", lambda name: "Q8_0")
    source = open_gguf(tmp_path / "m.gguf")
    config = json.loads(source.sidecars()["config.json"])
    assert config == CONFIG | {
        "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "head_dim": 64,
        "attention_bias": False, "mlp_bias": False, "bos_token_id": 259, "eos_token_id": 260,
    }  # fmt: skip
    assert source.architecture.eos_ids == (260,)


def test_a_file_without_a_head_is_tied(tmp_path: Path) -> None:
    wanted = write_gguf(
        tmp_path / "m.gguf", lambda name: "Q8_0", CONFIG | {"tie_word_embeddings": True}
    )
    source = open_gguf(tmp_path / "m.gguf")
    assert source.architecture.tied
    assert torch.equal(source.weight("lm_head.weight"), wanted["model.embed_tokens.weight"])


def test_the_factors_of_llama_3_are_its_scaling(tmp_path: Path) -> None:
    frequencies = 5000.0 ** -(torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    turns = 8192 * frequencies / (2 * torch.pi)
    share = ((turns - 1) / 3).clamp(0, 1)
    factors = (1 / ((1 - share) / 8 + share)).float().numpy()
    write_gguf(tmp_path / "m.gguf", lambda name: "Q8_0", extra={"rope_freqs.weight": factors})
    source = open_gguf(tmp_path / "m.gguf")
    assert source.architecture.rope == {
        "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    factors[3] *= 1.5
    write_gguf(tmp_path / "n.gguf", lambda name: "Q8_0", extra={"rope_freqs.weight": factors})
    with pytest.raises(UnsupportedModelError, match="expected those of Llama 3"):
        open_gguf(tmp_path / "n.gguf")


def test_scaling_in_the_metadata_is_config_jsons(tmp_path: Path) -> None:
    def change(writer: Any) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(64)

    write_gguf(tmp_path / "m.gguf", lambda name: "Q8_0", change=change)
    rope = open_gguf(tmp_path / "m.gguf").architecture.rope
    assert (rope["rope_type"], rope["factor"]) == ("yarn", 4.0)
    assert rope["original_max_position_embeddings"] == 64


def test_the_settings_of_a_file_are_the_commonest_and_overrides(tmp_path: Path) -> None:
    kinds = {"output.weight": "Q6_K", "blk.0.ffn_down.weight": "Q5_K", "blk.1.attn_v.weight": "F16"}
    write_gguf(tmp_path / "m.gguf", lambda name: kinds.get(name, "Q4_K"))
    int8 = {"weight_dtype": "int8", "scale_dtype": "fp32", "group_size": 32}
    assert open_gguf(tmp_path / "m.gguf").implied_options({}) == {
        "weight_dtype": "int4", "scheme": "affine", "scale_dtype": "fp32", "group_size": 32,
        "overrides": {
            "model.layers.0.mlp.down_proj": {**int8, "scheme": "affine"},
            "lm_head": {**int8, "scheme": "sym"},
            "model.embed_tokens": {
                "weight_dtype": "int4", "scheme": "affine", "scale_dtype": "fp32", "group_size": 32,
            },
        },
        "modules_to_not_convert": ["model.layers.1.self_attn.v_proj"],
    }  # fmt: skip
    write_gguf(tmp_path / "n.gguf", lambda name: "BF16")
    assert open_gguf(tmp_path / "n.gguf").implied_options({}) == {}


def with_key(key: str, value: Any, add: str = "add_string"):
    def change(writer: Any) -> None:
        writer.kv_data[0].pop(key, None)
        getattr(writer, add)(key, value)

    return change


REFUSED = {
    "architecture": (with_key("general.architecture", "rwkv7"), "'rwkv7' is not supported.*qwen2"),
    "an adapter": (with_key("general.type", "adapter"), "holds 'adapter'"),
    "a part": (with_key("split.count", 3, "add_uint16"), "one of 3 parts: join them"),
    "experts": (with_key("llama.expert_count", 8, "add_uint32"), "8 experts"),
    "a partial rotation": (
        with_key("llama.rope.dimension_count", 32, "add_uint32"),
        "dimension_count is 32, but keys have 64",
    ),
    "a scaling": (with_key("llama.rope.scaling.type", "longrope"), "rope_type 'longrope'"),
    "a pre-tokenizer": (with_key("tokenizer.ggml.pre", "viking"), "ggml.pre 'viking' is not"),
    "a tokenizer": (with_key("tokenizer.ggml.model", "bert"), "ggml.model 'bert' is not"),
}
DAMAGED = {
    "layers": (with_key("llama.block_count", "two"), "block_count must be a whole number"),
    "heads": (with_key("llama.attention.head_count", [1, 2], "add_array"), r"got \[1, 2\]"),
    "more layers": (with_key("llama.block_count", 3, "add_uint32"), "lacks the tensor blk.2."),
    "fewer layers": (with_key("llama.block_count", 1, "add_uint32"), "such as blk.1."),
    "sizes": (
        with_key("llama.feed_forward_length", 512, "add_uint32"),
        r"ffn_gate.weight has the shape \[256, 256\], but the metadata implies \[512, 256\]",
    ),
    "no heads": (with_key("llama.attention.head_count", 0, "add_uint32"), "positive integer"),
    "tokens twice": (
        with_key("tokenizer.ggml.tokens", ["a", "b", "a"], "add_array"),
        "'a' twice",
    ),
    "types": (with_key("tokenizer.ggml.token_type", [1], "add_array"), "a list of 272"),
    "merges": (with_key("tokenizer.ggml.merges", ["ab"], "add_array"), "'ab', expected two tokens"),
    "merges of others": (
        with_key("tokenizer.ggml.merges", ["xx yy"], "add_array"),
        "make no tokenizer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_by_name(tmp_path: Path, name: str) -> None:
    change, why = REFUSED[name]
    write_gguf(tmp_path / "m.gguf", lambda name: "Q8_0", change=change)
    with pytest.raises(UnsupportedModelError, match=why):
        open_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize("name", DAMAGED)
def test_metadata_that_does_not_fit_is_refused(tmp_path: Path, name: str) -> None:
    change, why = DAMAGED[name]
    write_gguf(tmp_path / "m.gguf", lambda name: "Q8_0", change=change)
    with pytest.raises(CheckpointError, match=why):
        open_gguf(tmp_path / "m.gguf")


def test_a_type_that_is_not_read_is_refused_with_those_that_are(
    tmp_path: Path, monkeypatch
) -> None:
    write_gguf(tmp_path / "m.gguf", lambda name: "Q8_0")
    data = (tmp_path / "m.gguf").read_bytes()
    place = data.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16
    (tmp_path / "m.gguf").write_bytes(data[:place] + b"\x0a" + data[place + 1 :])
    with pytest.raises(
        UnsupportedModelError, match=r"attn_q.weight is Q2_K, expected one of F32,.*Q6_K"
    ):
        open_gguf(tmp_path / "m.gguf")


def test_a_scale_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", lambda name: "Q8_0")
    source = open_gguf(tmp_path / "m.gguf")
    start = source.file.tensors["blk.0.ffn_up.weight"].start
    data = bytearray((tmp_path / "m.gguf").read_bytes())
    data[start : start + 2] = np.array([np.inf], np.float16).tobytes()
    (tmp_path / "n.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"ffn_up.weight has a scale that is not finite"):
        open_gguf(tmp_path / "n.gguf").packed("model.layers.0.mlp.up_proj.weight")


def test_the_same_file_has_the_same_identity(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", lambda name: "Q8_0")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/m.gguf").write_bytes((tmp_path / "m.gguf").read_bytes())
    first, second = (open_gguf(path).identity() for path in sorted(tmp_path.rglob("*.gguf")))
    assert first == second and "path" not in str(first)


def test_random_damage_is_told_as_damage(tmp_path: Path) -> None:
    """Whatever a byte of the header becomes, the file is read or refused, and nothing else."""
    config = CONFIG | {"hidden_size": 64, "intermediate_size": 64, "num_key_value_heads": 4}
    write_gguf(tmp_path / "m.gguf", lambda name: "Q8_0", config)
    data = (tmp_path / "m.gguf").read_bytes()
    random = np.random.default_rng(0)
    told = []
    for number in range(40):
        place, value = int(random.integers(5000)), int(random.integers(256))
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(data[:place] + bytes([value]) + data[place + 1 :])
        try:
            open_gguf(path)
        except CheckpointError as error:
            told.append(str(error))
    assert len(told) > 5
    assert all(": " in text for text in told)
