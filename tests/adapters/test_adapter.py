"""LoRA adapters made by peft, merged here and by peft itself."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from neuralchat_lite.adapters.adapter import open_adapter
from neuralchat_lite.adapters.merged import MergedCheckpoint
from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.errors import CheckpointError, UnsupportedModelError
from neuralchat_lite.packed.cache import cached
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig

peft = pytest.importorskip("peft", reason="the test extra has it")
transformers = pytest.importorskip("transformers")

MakeAdapter = Callable[..., Path]
ALL_MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Adapters of every form that is merged, by what is special about them.
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "every matrix and the head": {"target_modules": [*ALL_MATRICES, "lm_head"]},
    "all-linear": {"target_modules": "all-linear"},
    "a pattern": {"target_modules": r".*layers\.1\..*_proj"},
    "excluded": {"target_modules": ALL_MATRICES, "exclude_modules": ["up_proj"]},
    "one layer": {"layers_to_transform": 1},
    "layers by pattern": {"layers_to_transform": [0], "layers_pattern": "layers"},
    "rank-stabilised": {"use_rslora": True, "r": 6},
    "ranks by module": {"rank_pattern": {"v_proj": 3, r"layers\.1\.self_attn\.q_proj": 5}},
    "alphas by module": {"alpha_pattern": {"layers.0.self_attn.q_proj": 40, "v_proj": 3}},
    "both patterns, stabilised": {
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"q_proj": 7},
        "use_rslora": True,
    },
    "fan_in_fan_out": {"fan_in_fan_out": True},
    "gaussian": {"init_lora_weights": "gaussian"},
}


def peft_merge(base: Path, adapters: list[Path], dtype: torch.dtype) -> Any:
    """What apply_lora scripts do: load, merge, and again."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    for adapter in adapters:
        model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model


def merged(base: Path, adapters: list[Path]) -> MergedCheckpoint:
    checkpoint = open_checkpoint(base)
    opened = [open_adapter(folder, checkpoint) for folder in adapters]
    # Tiny matrices are merged in several pieces, as large ones are.
    return MergedCheckpoint(checkpoint, opened, slab_weights=1000)


def assert_rounded_once(source: MergedCheckpoint, want: dict[str, torch.Tensor]) -> None:
    """Every tensor is the nearest one of its dtype to the fp32 one in `want`."""
    changed = 0
    for spec in source.architecture.tensors():
        got, exact = source.weight(spec.name), want[spec.name]
        assert got.dtype == source.dtype(spec.name) == source.base.dtype(spec.name)
        assert got.shape == exact.shape
        info = torch.finfo(got.dtype)
        bound = 1e-6 + exact.abs() * info.eps / 2 * (got.dtype != torch.float32)
        assert bool(((got.float() - exact).abs() <= bound).all()), spec.name
        changed += not torch.equal(got, source.base.weight(spec.name))
    assert changed == len(set().union(*(adapter.modules for adapter in source.merged)))


@pytest.mark.parametrize("form", FORMS)
def test_a_merge_is_pefts_own(write_checkpoint, make_adapter: MakeAdapter, form: str) -> None:
    base = write_checkpoint(dtype=torch.float32)
    adapter = make_adapter(base, **FORMS[form])
    want = peft_merge(base, [adapter], torch.float32).state_dict()
    assert_rounded_once(merged(base, [adapter]), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_two_adapters_are_pefts_fp32_merge_rounded_once(
    write_checkpoint, make_adapter: MakeAdapter, dtype: torch.dtype
) -> None:
    base = write_checkpoint(dtype=dtype, shards=3)
    adapters = [
        make_adapter(base, "sft", 1),
        make_adapter(base, "dpo", 2, r=8, target_modules=["q_proj", "down_proj"]),
    ]
    want = peft_merge(base, adapters, torch.float32).state_dict()
    assert_rounded_once(merged(base, adapters), want)


def test_two_adapters_differ_from_pefts_bf16_merge_by_its_roundings(
    write_checkpoint, make_adapter: MakeAdapter
) -> None:
    base = write_checkpoint(dtype=torch.bfloat16)
    adapters = [make_adapter(base, "sft", 1), make_adapter(base, "dpo", 2)]
    exact = peft_merge(base, adapters, torch.float32).state_dict()
    theirs = peft_merge(base, adapters, torch.bfloat16).state_dict()
    source = merged(base, adapters)
    ours_off = theirs_off = 0.0
    for module in source.merged[0].modules:
        name = f"{module}.weight"
        ours_off += float((source.weight(name).float() - exact[name]).square().sum())
        theirs_off += float((theirs[name].float() - exact[name]).square().sum())
        # Theirs rounds the sum twice, ours once: half a unit in the last place each time.
        steps = (source.weight(name).float() - theirs[name].float()).abs()
        bound = exact[name].abs().clamp(min=0.1) * torch.finfo(torch.bfloat16).eps * 1.5
        assert bool((steps <= bound).all()), name
    assert ours_off < 0.9 * theirs_off


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_adapters_are_multiplied_in_fp32(
    write_checkpoint, make_adapter: MakeAdapter, dtype: torch.dtype
) -> None:
    base = write_checkpoint(dtype=torch.float32)
    adapter = make_adapter(base)
    rewrite(adapter, lambda tensors: {name: tensors[name].to(dtype) for name in tensors})
    name = "model.layers.0.self_attn.q_proj"
    tensors = load_file(adapter / WEIGHTS)
    a, b = (tensors[f"base_model.model.{name}.lora_{half}.weight"].double() for half in "AB")
    want = open_checkpoint(base).weight(f"{name}.weight").double() + 10 / 4 * b @ a
    got = merged(base, [adapter]).weight(f"{name}.weight").double()
    assert float((got - want).abs().max()) < 1e-6


def rewrite(adapter: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors of an adapter: in place, or to what `change` returns."""
    tensors = load_file(adapter / WEIGHTS)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    tensors = change(tensors) or tensors
    save_file(tensors, adapter / WEIGHTS, metadata={"format": "pt"})


def reconfigure(adapter: Path, **changes: Any) -> None:
    path = adapter / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_names_with_the_default_adapter_in_them_are_the_same_tensors(
    write_checkpoint, make_adapter: MakeAdapter
) -> None:
    base = write_checkpoint()
    adapter = make_adapter(base)
    name = "model.layers.0.self_attn.q_proj.weight"
    before = merged(base, [adapter]).weight(name)
    rewrite(
        adapter,
        lambda tensors: {n.replace(".weight", ".default.weight"): tensors[n] for n in tensors},
    )
    assert torch.equal(merged(base, [adapter]).weight(name), before)


def test_what_no_adapter_changes_is_the_mapped_file(
    write_checkpoint, make_adapter: MakeAdapter, mapped_file
) -> None:
    base = write_checkpoint()
    source = merged(base, [make_adapter(base)])
    untouched, changed = (
        source.weight(f"model.layers.0.self_attn.{name}.weight") for name in ("k_proj", "q_proj")
    )
    assert mapped_file(untouched.data_ptr()) == str(base / "model.safetensors")
    assert mapped_file(changed.data_ptr()) in ("", "[heap]")


def test_pefts_copy_of_the_head_may_be_in_another_precision(
    write_checkpoint, make_adapter: MakeAdapter
) -> None:
    base = write_checkpoint(dtype=torch.bfloat16)
    adapter = make_adapter(base, target_modules=["lm_head"])
    copy = load_file(adapter / WEIGHTS)["base_model.model.lm_head.base_layer.weight"]
    assert copy.dtype == torch.float32
    want = peft_merge(base, [adapter], torch.float32).state_dict()
    assert_rounded_once(merged(base, [adapter]), want)


A_OF_Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def without(*names: str) -> Callable[[Path], None]:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for name in names:
            del tensors[name]

    return lambda adapter: rewrite(adapter, drop)


def with_tensors(**more: torch.Tensor) -> Callable[[Path], None]:
    return lambda adapter: rewrite(adapter, lambda tensors: tensors.update(more))


def with_config(**changes: Any) -> Callable[[Path], None]:
    return lambda adapter: reconfigure(adapter, **changes)


def poisoned(value: float) -> Callable[[Path], None]:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors[A_OF_Q][1, 2] = value

    return lambda adapter: rewrite(adapter, poison)


def pickled(adapter: Path) -> None:
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")


def cut(adapter: Path) -> None:
    (adapter / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:-10])


B_OF_Q = A_OF_Q.replace("lora_A", "lora_B")
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (
        lambda adapter: (adapter / CONFIG).unlink(),
        "not a PEFT adapter: give the folder",
    ),
    "config is no JSON": (lambda a: (a / CONFIG).write_text("{"), "is not JSON"),
    "no weights": (lambda a: (a / WEIGHTS).unlink(), "has no adapter_model.*download"),
    "pickled weights": (pickled, "only pickled weights, which can run any code.*peft's save_pre"),
    "weights cut short": (cut, "its header describes"),
    "rank no integer": (with_config(r="8"), "r must be a positive integer, got '8'"),
    "no rank": (with_config(r=0), "r must be a positive integer, got 0"),
    "no alpha": (with_config(lora_alpha=None), "lora_alpha must be a number below 1e30, got None"),
    "a strange flag": (with_config(use_rslora=1), "use_rslora must be true or false, got 1"),
    "no targets": (with_config(target_modules=None), "target_modules must be a list.*got None"),
    "empty targets": (with_config(target_modules=[]), "target_modules must be a list.*got ()"),
    "a broken pattern": (with_config(rank_pattern={"(": 3}), r"rank_pattern must be a regular"),
    "a pattern that hangs": (
        with_config(target_modules=r"(.*)*(.*)*(.*)*x"),
        r"target_modules must be a regular expression that can be matched.*names of modules",
    ),
    "a pattern of layers that hangs": (
        with_config(layers_to_transform=[0], layers_pattern=[r"(.*)*(.*)*(.*)*x"]),
        "layers_pattern must be a regular expression that can be matched",
    ),
    "a pattern of ranks": (with_config(rank_pattern={"q_proj": 0}), r"\['q_proj'\] must be a pos"),
    "patterns in a list": (with_config(alpha_pattern=[1]), "alpha_pattern must be an object"),
    "layers by name": (with_config(layers_to_transform=["x"]), "must be a list of layer numbers"),
    "another rank": (with_config(r=5), r"q_proj.lora_A.weight has the shape \[4, 64\].*\[5, 64\]"),
    "half a pair": (without(A_OF_Q), "lacks lora_A of model.layers.0.self_attn.q_proj"),
    "other half": (without(B_OF_Q), "lacks lora_B of model.layers.0.self_attn.q_proj"),
    "a missing module": (without(A_OF_Q, B_OF_Q), "lacks model.layers.0.self_attn.q_proj, which"),
    "a target of another base": (
        with_config(target_modules=["q_proj", "v_proj", "query_key_value"]),
        "query_key_value', which the base does not have: give the base that the adapter was tr",
    ),
    "an untargeted module": (
        with_config(target_modules=["q_proj"]),
        "has model.layers.0.self_attn.v_proj, which target_modules.*leaves out",
    ),
    "a layer too many": (
        with_tensors(**{A_OF_Q.replace("0", "7"): torch.ones(4, 64)}),
        "lacks lora_B of model.layers.7",
    ),
    "one tensor twice": (
        with_tensors(**{A_OF_Q.replace(".weight", ".default.weight"): torch.ones(4, 64)}),
        "under two names",
    ),
    "NaN": (poisoned(float("nan")), "lora_A of model.layers.0.self_attn.q_proj.*not finite"),
    "infinity": (poisoned(float("-inf")), "not finite: download the adapter again"),
    "half a tokenizer": (
        lambda adapter: (adapter / "tokenizer_config.json").write_text("{}"),
        "has tokenizer_config.json but no tokenizer",
    ),
}


def refusal(base: Path, make_adapter: MakeAdapter, change: Callable[[Path], Any]) -> Exception:
    """The error for an adapter of this base, changed."""
    adapter = make_adapter(base)
    change(adapter)
    with pytest.raises(CheckpointError) as refused:
        open_adapter(adapter, open_checkpoint(base))
    return refused.value


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_adapter_is_refused(
    write_checkpoint, make_adapter: MakeAdapter, damage: str
) -> None:
    change, message = DAMAGES[damage]
    error = refusal(write_checkpoint(), make_adapter, change)
    assert re.search(message, str(error))
    assert not isinstance(error, UnsupportedModelError)


UNSUPPORTED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another method": (with_config(peft_type="IA3"), "peft_type 'IA3' is not supported"),
    "DoRA": (with_config(use_dora=True), "use_dora True asks for more"),
    "biases": (with_config(bias="lora_only"), "bias 'lora_only'"),
    "biases of the LoRA": (with_config(lora_bias=True), "lora_bias True asks for more"),
    "whole layers": (with_config(modules_to_save=["lm_head"]), r"modules_to_save \['lm_head'\]"),
    "a key of the future": (with_config(use_zora=True), "use_zora True asks for more"),
    "PiSSA": (
        with_config(init_lora_weights="pissa_niter_4"),
        "init_lora_weights 'pissa_niter_4' changes the weights of the base.*path_initial_model",
    ),
    "a whole tensor": (
        with_tensors(**{"base_model.model.lm_head.weight": torch.ones(60, 64)}),
        "lm_head.weight is neither a LoRA matrix nor a copy of the base's.*merge it with peft",
    ),
    "a trained copy of the base's": (
        with_tensors(**{"base_model.model.model.norm.weight": torch.full((64,), 1.01)}),
        "norm.weight is neither a LoRA matrix nor a copy of the base's",
    ),
    "an embedding": (
        with_tensors(**{"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 60)}),
        "lora_embedding_A is neither a LoRA matrix",
    ),
    "fp64": (
        lambda adapter: rewrite(adapter, lambda tensors: {n: tensors[n].double() for n in tensors}),
        "is F64, expected one of",
    ),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_what_is_more_than_lora_on_matrices_is_refused_by_name(
    write_checkpoint, make_adapter: MakeAdapter, kind: str
) -> None:
    change, message = UNSUPPORTED[kind]
    error = refusal(write_checkpoint(), make_adapter, change)
    assert re.search(message, str(error))
    assert isinstance(error, UnsupportedModelError)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"num_hidden_layers": 1}, "changes 'model.layers.1.self_attn.q_proj', which the base"),
        ({"num_hidden_layers": 3}, "lacks model.layers.2.self_attn.q_proj.*or for a smaller base"),
        ({"num_attention_heads": 8}, r"lora_B.weight has the shape \[64, 4\], expected \[128, 4\]"),
        ({"hidden_size": 32}, r"lora_A.weight has the shape \[4, 64\], expected \[4, 32\]"),
    ],
    ids=str,
)
def test_an_adapter_of_another_base_is_refused(
    write_checkpoint, make_adapter: MakeAdapter, other: dict[str, int], message: str
) -> None:
    adapter = make_adapter(write_checkpoint(head_dim=16))
    base = open_checkpoint(write_checkpoint(head_dim=16, **other))
    with pytest.raises(CheckpointError, match=message):
        open_adapter(adapter, base)


def test_an_adapter_on_a_tied_head_is_refused(write_checkpoint, make_adapter: MakeAdapter) -> None:
    base = write_checkpoint(tie_word_embeddings=True)
    adapter = make_adapter(base, target_modules=["q_proj", "lm_head"])
    with pytest.raises(UnsupportedModelError, match=r"changes lm_head.*untie the base first"):
        open_adapter(adapter, open_checkpoint(base))


def test_a_sum_beyond_the_dtype_is_refused_and_a_damaged_base_is_named(
    write_checkpoint, make_adapter: MakeAdapter
) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    base = write_checkpoint(dtype=torch.float16)
    adapter = make_adapter(base, lora_alpha=10_000_000)
    with pytest.raises(CheckpointError, match=f"{name}: merged with sft, it has .*beyond.*float16"):
        merged(base, [adapter]).weight(name)

    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][3, 5] = float("nan")

    bad = write_checkpoint(tensors=poison)
    with pytest.raises(CheckpointError, match=r"q_proj.weight\[3, 5\] is nan.*download the chec"):
        merged(bad, [make_adapter(base)]).weight(name)


# What each folder brings besides its weights -> where each tokenizer file must come from.
TOKENIZERS: dict[str, tuple[list[set[str]], dict[str, str]]] = {
    "the base's": ([set(), set()], {"tokenizer.json": "base", "chat_template.jinja": "base"}),
    "the first adapter's, whole": (
        [{"tokenizer.json", "tokenizer_config.json"}, set()],
        {"tokenizer.json": "sft", "tokenizer_config.json": "sft"},
    ),
    "the last adapter's": (
        [{"tokenizer.json", "chat_template.jinja"}, {"tokenizer.model", "added_tokens.json"}],
        {"tokenizer.model": "dpo", "added_tokens.json": "dpo"},
    ),
    "a later template": (
        [{"tokenizer.json", "chat_template.json"}, {"chat_template.jinja"}],
        {"tokenizer.json": "sft", "chat_template.jinja": "dpo"},
    ),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_the_tokenizer_comes_whole_from_the_last_folder_that_has_one(
    write_checkpoint, make_adapter: MakeAdapter, case: str
) -> None:
    brought, want = TOKENIZERS[case]
    base = write_checkpoint()
    (base / "chat_template.jinja").write_text("base")
    (base / "generation_config.json").write_text("{}")
    adapters = [make_adapter(base, name) for name in ("sft", "dpo")]
    for adapter, names in zip(adapters, brought, strict=True):
        (adapter / "generation_config.json").write_text("not the base's")
        for name in names:
            (adapter / name).write_text(f"{name} of {adapter.name}")
    folders = {"base": base, "sft": adapters[0], "dpo": adapters[1]}
    places = {
        "config.json": base,
        "generation_config.json": base,
        **{name: folders[folder] for name, folder in want.items()},
    }
    assert merged(base, adapters).sidecars() == {
        name: (folder / name).read_bytes() for name, folder in places.items()
    }


CLIP = WeightOnlyQuantConfig(weight_dtype="int4_clip")


def entry(base: Path, adapters: list[Path], root: Path) -> Path:
    source = merged(base, adapters) if adapters else open_checkpoint(base)
    return cached(source, CLIP, root=root)


def test_the_key_follows_the_contents_and_the_order_of_adapters(
    write_checkpoint, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    root = tmp_path / "cache"
    base = write_checkpoint()
    sft, dpo = (make_adapter(base, name, seed) for seed, name in enumerate(("sft", "dpo")))
    tried = [[], [sft], [dpo], [sft, dpo], [dpo, sft], [sft, sft]]
    entries = [entry(base, adapters, root) for adapters in tried]
    assert len({entry.name.rpartition("-")[2] for entry in entries}) == len(tried)
    assert "_sft_dpo-int4-g32-" in entries[3].name
    moved = tmp_path / "elsewhere" / "sft"
    shutil.copytree(sft, moved)
    assert entry(base, [moved], root) == entries[1]
    (moved / "chat_template.jinja").write_text("{{ messages }}")
    assert entry(base, [moved], root) != entries[1]
    reconfigure(sft, lora_alpha=11)
    assert entry(base, [sft], root) not in entries


def test_without_adapters_the_key_says_nothing_of_them(write_checkpoint, tmp_path: Path) -> None:
    base = write_checkpoint()
    manifest = json.loads((entry(base, [], tmp_path) / "manifest.json").read_text())
    assert manifest["adapters"] == []
    # The key as it was before there were adapters: entries that people have must stay theirs.
    parts = {
        "format": 1,
        "quantizer": ["rtn", 1],
        "quantization": CLIP.key_config(),
        "source": {"files": {path.name: sha256(path) for path in base.iterdir()}},
    }
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    assert manifest["key"] == hashlib.sha256(text.encode()).hexdigest()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_manifest_names_adapters_by_their_digests_or_their_revision(
    write_checkpoint, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    base = write_checkpoint()
    adapter = make_adapter(base)
    (adapter / "README.md").write_text("changes nothing")
    checkpoint = open_checkpoint(base)
    opened = [open_adapter(adapter, checkpoint), open_adapter(adapter, checkpoint, ("o/a", "f00"))]
    folder = cached(MergedCheckpoint(checkpoint, opened), WeightOnlyQuantConfig(), root=tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    names = (CONFIG, WEIGHTS)
    assert manifest["adapters"] == [
        {"files": {name: sha256(adapter / name) for name in names}},
        {
            "hub": "o/a",
            "revision": "f00",
            "files": {name: (adapter / name).stat().st_size for name in names},
        },
    ]
    assert set(manifest["source"]) == {"files"}
    assert str(tmp_path) not in json.dumps(manifest)
