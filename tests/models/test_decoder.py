"""The decoder against transformers on the same weights, and against golden outputs."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from neuralchat_lite.errors import PromptError
from neuralchat_lite.families.architecture import Architecture
from neuralchat_lite.families.config_json import parse_architecture, read_architecture
from neuralchat_lite.kernels import native
from neuralchat_lite.kernels.kv_format import KV_FORMATS, PAGE
from neuralchat_lite.kernels.layout import PackedMatrix, dequantize, pack_codes, pack_groups
from neuralchat_lite.kernels.reference import ReferenceKernels
from neuralchat_lite.models import decoder as decoder_module
from neuralchat_lite.models.build import load_decoder
from neuralchat_lite.quantization.levels import LEVELS
from neuralchat_lite.quantization.rtn import quantize_rtn
from neuralchat_lite.quantization.search import quantize_search


@dataclass
class MemoryWeights:
    architecture: Architecture
    tensors: dict[str, Tensor | PackedMatrix]

    def weight(self, name: str) -> Tensor | PackedMatrix:
        if name == "lm_head.weight" and name not in self.tensors:
            name = "model.embed_tokens.weight"
        return self.tensors[name]


def quantize(tensor: Tensor, weight_dtype: str, group_size: int, scheme: str) -> PackedMatrix:
    options: Any = {"group_size": group_size, "scheme": scheme, "scale_dtype": "fp16"}
    if scheme == "affine8":
        result = quantize_search(tensor, **options)
    else:
        result = quantize_rtn(tensor, weight_dtype=weight_dtype, **options)
    stored = LEVELS[weight_dtype].stored
    return PackedMatrix(
        stored,
        *tensor.shape,
        group_size,
        pack_codes(result.codes, stored),
        pack_groups(result.scales),
        None if result.zeros is None else pack_groups(result.zeros),
        None if result.minima is None else pack_groups(result.minima),
    )


def random_shape(seed: int) -> dict[str, Any]:
    """A small config: grouping, biases, norms, tying, windows and rope scalings by chance."""
    rng = random.Random(seed)
    model_type = ["mistral", "llama", "qwen2", "qwen3"][seed % 4]
    kv_heads = rng.choice([1, 2, 3])
    heads = kv_heads * rng.choice([1, 2, 4])
    head_dim = rng.choice([8, 16, 20, 32])
    config: dict[str, Any] = {
        "model_type": model_type,
        "vocab_size": rng.choice([97, 128, 259]),
        "hidden_size": heads * (head_dim if model_type == "qwen2" else rng.choice([12, 17, 32])),
        "intermediate_size": rng.choice([64, 120, 172]),
        "num_hidden_layers": rng.choice([2, 3]),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": 256,
        "rms_norm_eps": rng.choice([1e-5, 1e-6]),
        "tie_word_embeddings": rng.random() < 0.5,
        "rope_parameters": rng.choice(
            [
                {"rope_type": "default", "rope_theta": 10000.0},
                {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
                {
                    "rope_type": "llama3",
                    "rope_theta": 500000.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                },
                {
                    "rope_type": "yarn",
                    "rope_theta": 10000.0,
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                },
            ]
        ),
    }
    window = rng.choice([5, 16, 23])
    if model_type == "mistral":
        config["sliding_window"] = rng.choice([None, window])
    if model_type == "llama":
        config["attention_bias"] = rng.random() < 0.5
        config["mlp_bias"] = rng.random() < 0.5
    if model_type.startswith("qwen"):
        config |= {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}
    return config


def transformers_model(config: dict[str, Any], seed: int) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {k: v for k, v in config.items() if k != "model_type"}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(config["model_type"], **settings), dtype=torch.float32
    ).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
        else:
            parameter.data.normal_(std=0.3)
    return model


def share_weights(
    model: Any, architecture: Architecture, weight_dtype: str | None, group_size: int, scheme: str
) -> MemoryWeights:
    """Our weights of a transformers model, which gets their dequantized values in return."""
    state = model.state_dict()
    tensors: dict[str, Tensor | PackedMatrix] = {}
    for spec in architecture.tensors():
        tensor = state[spec.name]
        if (
            weight_dtype is None
            or spec.role not in ("linear", "lm_head")
            or (spec.role == "lm_head" and architecture.tied)
        ):
            tensors[spec.name] = tensor
        else:
            packed = quantize(tensor, weight_dtype, group_size, scheme)
            tensors[spec.name] = packed
            tensor.copy_(dequantize(packed))
    return MemoryWeights(architecture, tensors)


def greedy(decoder: Any, ids: list[int], count: int) -> list[int]:
    cache, ids = decoder.new_cache(), list(ids)
    logits = decoder.forward(ids, cache)
    for _ in range(count):
        ids.append(int(logits.argmax()))
        logits = decoder.forward(ids[-1:], cache)
    return ids


@pytest.mark.parametrize("seed", range(20))
def test_greedy_ids_of_random_shapes_are_those_of_transformers(seed):
    config = random_shape(seed)
    model = transformers_model(config, seed)
    # As transformers writes it, so that we read what real folders hold.
    architecture = parse_architecture(model.config.to_dict())
    storage = [(None, 0, ""), ("int4", 32, "sym"), ("int8", 64, "asym"), ("int4", -1, "asym")]
    weights = share_weights(model, architecture, *storage[seed // 4 % 4])
    prompt = torch.randint(0, config["vocab_size"], (1, 40)).tolist()[0]
    with torch.no_grad():
        want = model.generate(
            torch.tensor([prompt]), max_new_tokens=30, do_sample=False, eos_token_id=-1
        )[0].tolist()
    decoder = load_decoder(weights, compute_dtype="fp32", context_length=256)
    assert greedy(decoder, prompt, 30) == want


@pytest.mark.parametrize(
    ("weight_dtype", "scheme"),
    [
        *((kind, scheme) for kind in ("int4", "int8") for scheme in ("sym", "asym", "affine")),
        ("int4", "affine8"),
    ],
)
def test_rows_of_a_quantized_embedding_are_its_dequantized_weights(weight_dtype, scheme):
    config = random_shape(1) | {"tie_word_embeddings": False}
    architecture = parse_architecture(config)
    weights = share_weights(transformers_model(config, 1), architecture, "int8", 64, "affine")
    name = architecture.embedding_name
    packed = quantize(weights.tensors[name], weight_dtype, 32, scheme)
    assert packed.scheme == scheme
    ids = torch.randint(0, config["vocab_size"], (40,))
    logits = []
    for table in (packed, dequantize(packed)):
        weights.tensors[name] = table
        decoder = load_decoder(weights, compute_dtype="fp32", context_length=256)
        logits.append(decoder.forward(ids, decoder.new_cache(), all_logits=True))
    assert torch.equal(*logits)
    weights.tensors[name] = packed
    slow = load_decoder(
        weights, compute_dtype="fp32", context_length=256, kernels=ReferenceKernels()
    )
    got = slow.forward(ids, slow.new_cache(), all_logits=True)
    torch.testing.assert_close(got, logits[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_bf16_compute_is_closer_to_fp32_than_transformers_in_bf16(seed):
    config = random_shape(seed)
    model = transformers_model(config, seed)
    weights = share_weights(model, parse_architecture(config), "int4", 32, "sym")
    ids = torch.randint(0, config["vocab_size"], (60,))
    decoder = load_decoder(weights, compute_dtype="bf16", context_length=256)
    got = decoder.forward(ids, decoder.new_cache(), all_logits=True)
    with torch.no_grad():
        exact = model(ids[None]).logits[0]
        rounded = model.bfloat16()(ids[None]).logits[0].float()
    assert (got - exact).square().mean() < (rounded - exact).square().mean()


def test_the_random_shapes_cover_what_they_claim_to():
    shapes = [random_shape(seed) for seed in range(20)]
    assert {s["rope_parameters"]["rope_type"] for s in shapes} == {
        "default",
        "linear",
        "llama3",
        "yarn",
    }
    assert {s["num_attention_heads"] // s["num_key_value_heads"] for s in shapes} == {1, 2, 4}
    assert {s["tie_word_embeddings"] for s in shapes} == {True, False}
    assert any(s.get("sliding_window") for s in shapes if s["model_type"] == "mistral")
    assert {s.get("attention_bias") for s in shapes if s["model_type"] == "llama"} == {True, False}


@pytest.mark.slow
def test_positions_around_the_window_of_4096_match_transformers():
    config = {
        "model_type": "mistral",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "rope_theta": 10000.0,
    }
    model = transformers_model(config, 0)
    weights = share_weights(model, parse_architecture(config), None, 0, "")
    ids = torch.randint(0, 64, (8192,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = model(ids[None]).logits[0]
    decoder = load_decoder(weights, compute_dtype="fp32")
    assert decoder.context_length == 8192
    cache = decoder.new_cache()
    got = decoder.forward(ids[:8190], cache, all_logits=True)
    last = [decoder.forward(ids[i : i + 1], cache) for i in (8190, 8191)]
    got = torch.cat((got, torch.stack(last)))
    for position in (0, 4094, 4095, 4096, 4097, 6000, 8190, 8191):
        torch.testing.assert_close(got[position], want[position], atol=2e-3, rtol=1e-3)
    held = sum(page is not None for page in cache.tables[0].pages) * PAGE
    assert held <= 4096 + 2 * decoder.prefill_block + PAGE
    with pytest.raises(PromptError, match="exceed the context of 8192"):
        decoder.forward(ids[:1], cache)


# ---- the small trained models ----


def trained_weights(folder, weight_dtype: str | None = None) -> MemoryWeights:
    architecture = read_architecture(folder)
    tensors: dict[str, Any] = dict(load_file(folder / "model.safetensors"))
    if weight_dtype is not None:
        for spec in architecture.tensors():
            if spec.role == "linear":
                tensors[spec.name] = quantize(tensors[spec.name], weight_dtype, 32, "sym")
    return MemoryWeights(architecture, tensors)


@pytest.mark.parametrize("isa_name", native.usable_isas())
def test_fp32_reproduces_the_golden_outputs(trained_model, isa_name):
    before = native.isa().value
    native.use_isa(isa_name)
    try:
        decoder = load_decoder(trained_weights(trained_model), compute_dtype="fp32")
        for golden in json.loads((trained_model / "golden.json").read_text()):
            prompt, want = golden["input_ids"], golden["greedy_ids"]
            top = decoder.forward(prompt, decoder.new_cache()).topk(5)
            assert top.indices.tolist() == [token for token, _ in golden["next_token_top5"]]
            logits = torch.tensor([logit for _, logit in golden["next_token_top5"]])
            assert (top.values - logits).abs().max() < 1e-3
            assert len(want) - len(prompt) == 200
            assert greedy(decoder, prompt, 200) == want
    finally:
        native.use_isa(before)


def perplexity(decoder: Any, ids: list[int], bos: int) -> float:
    """Windows of 255 tokens, each behind <s>: the protocol of reference.json."""
    losses = []
    for start in range(0, len(ids) - 254, 255):
        window = torch.tensor([bos, *ids[start : start + 255]])
        logits = decoder.forward(window[:-1], decoder.new_cache(), all_logits=True)
        losses.append(torch.nn.functional.cross_entropy(logits, window[1:]).item())
    return math.exp(sum(losses) / len(losses))


# Text and column of reference.json: of the published models, and of the one made by the tests.
TEXTS = {
    "known": [("tinystories-valid-head.txt", "ppl_tinystories_valid"), ("known.txt", "ppl_known")],
    "other": [("wikitext-2-raw-test.txt", "ppl_wikitext2_raw_test"), ("other.txt", "ppl_other")],
}


@pytest.mark.parametrize(("weight_dtype", "row"), [("int8", "int8 g32"), ("int4_clip", "int4 g32")])
@pytest.mark.parametrize("kind", TEXTS)
def test_bf16_compute_reaches_the_reference_perplexity(trained_model, weight_dtype, row, kind):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(trained_model / "tokenizer.json"))
    reference = json.loads((trained_model.parent / "reference.json").read_text())["results"]
    (found,) = (r for r in reference if r["model"] == trained_model.name and r["weights"] == row)
    ((text, column),) = (pair for pair in TEXTS[kind] if pair[1] in found)
    want = found[column]
    path = trained_model.parents[1] / "text" / text
    characters = path.read_text(encoding="utf-8")[:100_000]
    ids = tokenizer.encode(characters, add_special_tokens=False).ids
    decoder = load_decoder(trained_weights(trained_model, weight_dtype), compute_dtype="bf16")
    got = perplexity(decoder, ids, decoder.architecture.bos_id or 1)
    print(f"{trained_model.name} {row} {column}: {got:.4f}, reference {want:.4f}")
    assert abs(got / want - 1) < 0.01


# ---- what goes wrong, and what a cache may do ----


@pytest.fixture
def small():
    config = random_shape(0) | {"sliding_window": 16}
    model = transformers_model(config, 0)
    return share_weights(model, parse_architecture(config), None, 0, "")


def test_prompts_that_cannot_be_are_refused_and_leave_the_cache_as_it_was(small):
    decoder = load_decoder(small, compute_dtype="fp32", context_length=50)
    cache = decoder.new_cache()
    decoder.forward([1, 2, 3], cache)
    for ids, message in [
        ([], "non-empty"),
        ([1] * 48, "3 tokens in the cache and 48 new ones exceed the context of 50"),
        ([small.architecture.vocab_size], "outside the vocabulary"),
        ([-1], "token id -1 is outside"),
        ([1.9, 2.2], "must be integers, got torch.float32"),
    ]:
        with pytest.raises(PromptError, match=message):
            decoder.forward(ids, cache)
        assert cache.length == 3
    assert len(decoder.forward([1] * 47, cache)) == small.architecture.vocab_size


@pytest.mark.parametrize("block", [1, 7, 64, 300])
def test_a_text_fed_in_any_pieces_gives_the_same_bits(small, block):
    decoder = load_decoder(small, compute_dtype="fp32", context_length=256, prefill_block=24)
    ids = torch.randint(0, small.architecture.vocab_size, (200,))
    whole = decoder.forward(ids, decoder.new_cache(), all_logits=True)
    cache = decoder.new_cache(1)
    pieces = [decoder.forward(piece, cache, all_logits=True) for piece in ids.split(block)]
    assert torch.equal(torch.cat(pieces), whole)


def test_a_truncated_cache_goes_on_as_if_nothing_had_followed(small):
    decoder = load_decoder(small, compute_dtype="fp32", context_length=256)
    ids = torch.randint(0, small.architecture.vocab_size, (100,)).tolist()
    want = decoder.forward(ids[:61], decoder.new_cache())
    cache = decoder.new_cache()
    decoder.forward(ids, cache)
    assert cache.can_truncate(60)
    cache.truncate(60)
    assert torch.equal(decoder.forward(ids[60:61], cache), want)


def test_a_cache_goes_back_as_far_as_its_pages_reach_or_to_the_start(small):
    decoder = load_decoder(small, compute_dtype="fp32", context_length=256, prefill_block=16)
    ids = torch.randint(0, small.architecture.vocab_size, (150,)).tolist()
    cache = decoder.new_cache()
    decoder.forward(ids, cache)
    # The last block began at 144. A window of 16 and a slack of 16 before it reach back to 113,
    # and page 1 begins at 64: the query at 79 sees positions 64 to 79.
    earliest = 79
    for length in (earliest, 140):
        assert cache.can_truncate(length)
    assert not cache.can_truncate(earliest - 1)
    with pytest.raises(PromptError, match="cannot go back"):
        cache.truncate(earliest - 1)
    cache.truncate(earliest)
    want = decoder.forward(ids[: earliest + 1], decoder.new_cache())
    assert torch.equal(decoder.forward(ids[earliest : earliest + 1], cache), want)
    cache.truncate(0)
    assert torch.equal(decoder.forward(ids[: earliest + 1], cache), want)


def test_going_back_in_steps_reaches_no_further_than_at_once(small):
    decoder = load_decoder(small, compute_dtype="fp32", context_length=256, prefill_block=16)
    cache = decoder.new_cache()
    decoder.forward(torch.randint(0, small.architecture.vocab_size, (150,)), cache)
    earliest = next(length for length in range(1, 151) if cache.can_truncate(length))
    for length in range(149, earliest - 1, -1):
        cache.truncate(length)
    assert not cache.can_truncate(earliest - 1)


def test_native_and_reference_decoders_agree(small):
    ids = torch.randint(0, small.architecture.vocab_size, (60,))
    logits = []
    for kernels in (None, ReferenceKernels()):
        decoder = load_decoder(small, compute_dtype="fp32", context_length=256, kernels=kernels)
        logits.append(decoder.forward(ids, decoder.new_cache(), all_logits=True))
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)


def test_bytes_per_token_counts_each_matrix_once_and_the_keys_in_the_window(small):
    decoder = load_decoder(small, compute_dtype="bf16")
    arch = small.architecture
    matrices = sum(
        t.nbytes
        for s in arch.tensors()
        if s.role in ("linear", "lm_head")
        for t in [small.weight(s.name)]
    )
    assert decoder.weight_bytes == matrices
    kept = 2 * arch.layers * arch.kv_size * 2  # keys and values, bf16, per position
    assert decoder.bytes_per_token(10) == matrices + 10 * kept
    assert decoder.bytes_per_token(1000) == matrices + 16 * kept


# Unquantized, computed in fp32; quantized, computed in each precision.
WAYS = [
    (None, 0, "", "fp32"),
    ("int4", 32, "sym", "fp32"),
    ("int4", 64, "asym", "bf16"),
    ("int4", 32, "sym", "int8"),
    ("int8", 64, "asym", "bf16"),
    ("int8", -1, "sym", "int8"),
]


@pytest.mark.parametrize("isa_name", native.usable_isas())
@pytest.mark.parametrize("kv_format", ["bf16", "int8"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(4))
def test_conversations_fed_together_have_the_bits_of_each_alone(seed, way, kv_format, isa_name):
    *storage, compute_dtype = way
    config = random_shape(seed)
    model = transformers_model(config, seed)
    weights = share_weights(model, parse_architecture(model.config.to_dict()), *storage)
    before = native.isa().value
    native.use_isa(isa_name)
    try:
        decoder = load_decoder(
            weights,
            compute_dtype=compute_dtype,
            kv_format=KV_FORMATS[kv_format],
            context_length=256,
            prefill_block=32,  # so that texts straddle blocks
        )
        lengths = [1, 70, 31, 2]
        texts = [torch.randint(0, config["vocab_size"], (n + 3,)) for n in lengths]
        for keep in (1, 3, None):
            together = [decoder.new_cache() for _ in texts]
            alone = [decoder.new_cache() for _ in texts]
            for first, last in ((None, -2), (-2, -1)):  # long and unequal, then one token each
                parts = [text[first:last] for text in texts]
                found = decoder.forward_batch(parts, together, keep=keep)
                for part, cache, logits in zip(parts, alone, found, strict=True):
                    want = [decoder.forward(part[i : i + 1], cache) for i in range(len(part))]
                    assert torch.equal(logits, torch.stack(want)[-(keep or len(part)) :])
    finally:
        native.use_isa(before)


def test_blocks_hold_every_token_once_and_no_more_than_fit():
    rng = random.Random(0)
    for _ in range(50):
        lengths = [rng.choice([1, 2, 100, 256, 257, 700]) for _ in range(rng.randint(1, 6))]
        seen = [0] * len(lengths)
        for block in decoder_module.blocks(lengths, 256):
            assert 0 < sum(last - first for _, first, last in block) <= 256
            assert len({text for text, _, _ in block}) == len(block)
            for text, first, last in block:
                assert first == seen[text]
                seen[text] = last
        assert seen == lengths


def test_a_batch_that_does_not_fit_leaves_every_cache_as_it_was():
    config = random_shape(0)
    weights = share_weights(
        transformers_model(config, 0), parse_architecture(config), None, 0, "sym"
    )
    decoder = load_decoder(weights, compute_dtype="fp32", context_length=20)
    caches = [decoder.new_cache(), decoder.new_cache()]
    with pytest.raises(PromptError, match="exceed the context of 20"):
        decoder.forward_batch([[1, 2], [3] * 21], caches)
    assert [cache.length for cache in caches] == [0, 0]


def test_a_copied_cache_goes_its_own_way():
    config = random_shape(0)
    weights = share_weights(
        transformers_model(config, 0), parse_architecture(config), None, 0, "sym"
    )
    decoder = load_decoder(weights, compute_dtype="fp32", context_length=64)
    cache = decoder.new_cache()
    decoder.forward([1, 2, 3], cache)
    twin = cache.copy()
    decoder.forward([9, 9, 9], cache)
    assert (cache.length, twin.length) == (6, 3)
    want = decoder.forward([1, 2, 3, 4], decoder.new_cache())
    torch.testing.assert_close(decoder.forward([4], twin), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("text", ["known.txt", "tinystories-valid-head.txt"])
def test_keys_and_values_in_int8_keep_the_perplexity_and_halve_the_bytes(trained_model, text):
    from tokenizers import Tokenizer

    path = trained_model.parents[1] / "text" / text
    if not path.exists():
        pytest.skip(f"no text of this model is called {text}")
    characters = path.read_text(encoding="utf-8")[:20_000]
    tokenizer = Tokenizer.from_file(str(trained_model / "tokenizer.json"))
    ids = tokenizer.encode(characters, add_special_tokens=False).ids
    weights, found, read = trained_weights(trained_model, "int4"), {}, {}
    for name in ("bf16", "int8"):
        decoder = load_decoder(weights, compute_dtype="bf16", kv_format=KV_FORMATS[name])
        found[name] = perplexity(decoder, ids, decoder.architecture.bos_id or 1)
        read[name] = decoder.bytes_per_token(100) - decoder.weight_bytes
    print(f"{trained_model.name} {text}: {found}")
    assert abs(found["int8"] / found["bf16"] - 1) < 0.005
    head_dim = decoder.architecture.head_dim
    assert read["int8"] / read["bf16"] == (head_dim + 2) / (2 * head_dim)  # 2: a scale in bf16
