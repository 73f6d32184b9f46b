import json
import logging
import time

import pytest
import torch

from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.checkpoints.random_weights import RandomCheckpoint
from neuralchat_lite.errors import CheckpointError, UnsupportedModelError
from neuralchat_lite.files import json_file

from ..patience import patience

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("tied", [False, True])
def test_every_tensor_is_read_as_it_was_written(write_checkpoint, shards, dtype, tied):
    folder = write_checkpoint(shards, dtype, tie_word_embeddings=tied)
    checkpoint = open_checkpoint(folder)
    source = RandomCheckpoint(json.loads((folder / "config.json").read_text()), 0, dtype)
    assert len(checkpoint.files) == shards
    for spec in source.architecture.tensors():
        assert torch.equal(checkpoint.weight(spec.name), source.weight(spec.name))
        assert checkpoint.dtype(spec.name) == dtype
    assert torch.equal(checkpoint.weight("lm_head.weight"), source.weight("lm_head.weight"))


def test_weights_are_views_of_the_mapped_file(write_checkpoint, mapped_file, anonymous_memory):
    folder = write_checkpoint(vocab_size=40_000, dtype=torch.float32)
    checkpoint = open_checkpoint(folder)
    before = anonymous_memory()
    weight = checkpoint.weight("model.embed_tokens.weight")
    assert float(weight.amax()) > 0  # every page is touched
    assert mapped_file(weight.data_ptr()) == str(folder / "model.safetensors")
    assert anonymous_memory() - before < weight.nbytes / 1024 / 4


def test_trained_models_open(trained_model):
    assert open_checkpoint(trained_model).weight("lm_head.weight").isfinite().all()


def test_names_without_the_model_prefix_are_found(write_checkpoint):
    def strip(weights):
        for name in list(weights):
            weights[name.removeprefix("model.")] = weights.pop(name)

    checkpoint = open_checkpoint(write_checkpoint(tensors=strip))
    assert checkpoint.weight(DOWN).shape == (64, 172)


def test_a_stored_head_counts_as_tied_only_when_it_is_the_embedding(write_checkpoint):
    def same(weights):
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()

    def other(weights):
        same(weights)
        weights["lm_head.weight"][-1, -1] += 1

    assert open_checkpoint(write_checkpoint(tensors=same, tie_word_embeddings=True))
    with pytest.raises(CheckpointError, match=r'differs.*set "tie_word_embeddings": false'):
        open_checkpoint(write_checkpoint(tensors=other, tie_word_embeddings=True))


def test_known_extras_are_ignored_and_others_refused(write_checkpoint):
    def known(weights):
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)

    def unknown(weights):
        weights["model.layers.0.self_attn.q_norm.weight"] = torch.ones(16)

    open_checkpoint(write_checkpoint(tensors=known))
    open_checkpoint(write_checkpoint(tie_word_embeddings=True, tensors=with_head))
    with pytest.raises(UnsupportedModelError, match=r"q_norm\.weight"):
        open_checkpoint(write_checkpoint(tensors=unknown))


HARMLESS = (
    "model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.layers.1.self_attn.rotary_emb.cos_cached",
    "model.rotary_emb.sin_cached",
    "v_head.summary.weight",
    "score.weight",
)


@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize("name", HARMLESS)
def test_tensors_beside_the_decoder_are_ignored_with_one_warning(
    write_checkpoint, name, prefix, caplog
):
    def add(weights):
        weights[name] = torch.ones(8)
        for each in list(weights):
            weights[each.removeprefix("" if prefix else "model.")] = weights.pop(each)

    with caplog.at_level(logging.WARNING):
        open_checkpoint(write_checkpoint(tensors=add))
    [warning] = caplog.messages
    assert "1 tensors are not part of the decoder" in warning and name.split(".")[-1] in warning


def test_a_tied_model_may_store_its_matrix_as_the_head(write_checkpoint):
    def swap(weights):
        weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")

    plain = open_checkpoint(write_checkpoint(tie_word_embeddings=True))
    stored = open_checkpoint(write_checkpoint(tie_word_embeddings=True, tensors=swap))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(stored.weight(name), plain.weight(name))
    with pytest.raises(CheckpointError, match=r"lacks the tensor model\.embed_tokens\.weight"):
        open_checkpoint(write_checkpoint(tensors=swap))


def test_layers_that_config_json_promises_are_counted(write_checkpoint):
    folder = write_checkpoint()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1000}))
    with pytest.raises(CheckpointError, match=r"num_hidden_layers 1000, the weights have 2"):
        open_checkpoint(folder)


def test_config_json_is_read_once(write_checkpoint, monkeypatch):
    folder = write_checkpoint()
    text, read, honest = (folder / "config.json").read_bytes(), [], json_file.parse_json
    monkeypatch.setattr(json_file, "parse_json", lambda data: read.append(data) or honest(data))
    open_checkpoint(folder)
    assert read.count(text) == 1


def with_head(weights):
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda w: w.pop(DOWN), CheckpointError, rf"lacks the tensor {DOWN} \[64, 172\]"),
        (
            lambda w: w.update({DOWN: torch.ones(172, 64, dtype=torch.bfloat16)}),
            CheckpointError,
            rf"{DOWN} has the shape \[172, 64\].*implies \[64, 172\]",
        ),
        (
            lambda w: w.update({DOWN: torch.ones(64, 172, dtype=torch.int8)}),
            UnsupportedModelError,
            f"{DOWN} is I8.*original bf16",
        ),
        (
            lambda w: w.update({DOWN: torch.ones(64, 172, dtype=torch.float64)}),
            UnsupportedModelError,
            f"{DOWN} is F64",
        ),
    ],
)
def test_a_wrong_tensor_is_named(write_checkpoint, change, error, message):
    with pytest.raises(error, match=message):
        open_checkpoint(write_checkpoint(tensors=change))


def test_a_missing_shard_is_named(write_checkpoint):
    folder = write_checkpoint(3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors is missing"):
        open_checkpoint(folder)


def test_a_single_file_beside_shards_is_refused_with_both_remedies(write_checkpoint):
    folder, stale = write_checkpoint(3), write_checkpoint(seed=1)
    (stale / "model.safetensors").rename(folder / "model.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"both model\.safetensors and model\.safetensors\.index\.json.*"
        r"remove model\.safetensors to use the shards, or model\.safetensors\.index\.json and",
    ):
        open_checkpoint(folder)


def test_an_index_of_the_single_file_alone_is_valid(write_checkpoint):
    folder = write_checkpoint()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {DOWN: "model.safetensors"}}))
    assert open_checkpoint(folder).weight(DOWN).shape == (64, 172)
    index.write_text(json.dumps({"weight_map": {"model.other": "model.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"lacks model\.other, which"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["", ".", "..", "a\0b", "x" * 5000, "é" * 200, 3, None, ["a"], {}])
def test_an_index_names_files_that_can_be(write_checkpoint, name):
    folder = write_checkpoint(2)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {DOWN: name}}))
    with pytest.raises(
        CheckpointError, match=r"index\.json names .*expected a file name"
    ) as caught:
        open_checkpoint(folder)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_shard_that_is_cut_short_is_named(write_checkpoint, keep):
    folder = write_checkpoint(3)
    shard = folder / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003.*download"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}',
        b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1]}}',
        b'{"a": {"dtype": "F32", "shape": ["4"], "data_offsets": [0, 16]}}',
        b'{"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.5]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": {"0": 4}}}',
        b'{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "' + b"F" * 5000 + b'", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"' + b"a" * 5000 + b'": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "X", "shape": [' + b"9" * 4000 + b'], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [' + b"1," * 999 + b'1], "data_offsets": [0, 4]}}',
        b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"__metadata__": ' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
    ],
)
def test_a_damaged_header_is_an_error_of_ours(write_checkpoint, header):
    folder = write_checkpoint()
    path = folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match=r"model\.safetensors has a damaged header") as caught:
        open_checkpoint(folder)
    assert len(str(caught.value)) < 1000


def test_a_header_larger_than_that_of_any_model_is_refused_at_once(write_checkpoint):
    folder = write_checkpoint()
    header = b'{"a":"' + b" " * 99_000_000 + b'"}'
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"header of 99000008 bytes, at most 8192000 are"):
        open_checkpoint(folder)
    assert time.perf_counter() - start < patience(1)


def test_the_largest_header_is_refused_quickly(write_checkpoint):
    folder = write_checkpoint()
    entry = '"{}": {{"dtype": "F32", "shape": [1], "data_offsets": [{}, {}]}}'
    entries = ",".join(entry.format(i, 4 * i, 4 * i + 4) for i in range(100_000))
    header = f"{{{entries}}}".encode()
    data = len(header).to_bytes(8, "little") + header + bytes(400_000)
    (folder / "model.safetensors").write_bytes(data)
    start = time.perf_counter()
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)
    assert time.perf_counter() - start < patience(5)


def test_tensors_that_overlap_are_refused(write_checkpoint):
    folder = write_checkpoint()
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    gate, up = (header[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up"))
    gate["data_offsets"] = up["data_offsets"]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(CheckpointError, match="is damaged"):
        open_checkpoint(folder)


def test_an_index_that_lists_what_a_shard_lacks_is_refused(write_checkpoint):
    folder = write_checkpoint(2)
    index = folder / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"][DOWN] = next(f for f in table["weight_map"].values() if "00001" in f)
    other = next(iter(table["weight_map"].values()))
    table["weight_map"]["model.extra"] = other
    index.write_text(json.dumps(table))
    with pytest.raises(CheckpointError, match="lacks"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd"])
def test_an_index_cannot_point_out_of_its_folder(write_checkpoint, name):
    folder = write_checkpoint(2)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {DOWN: name}}))
    with pytest.raises(CheckpointError, match="without folders"):
        open_checkpoint(folder)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": 3}', "nonsense"])
def test_a_damaged_index_is_named(write_checkpoint, index):
    folder = write_checkpoint(2)
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        open_checkpoint(folder)


def test_pickled_weights_are_refused_with_the_remedy(write_checkpoint):
    folder = write_checkpoint()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*save_pretrained"):
        open_checkpoint(folder)


def test_a_folder_without_weights_or_config_is_refused(write_checkpoint, tmp_path):
    folder = write_checkpoint()
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        open_checkpoint(folder)
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="is not a folder"):
        open_checkpoint(folder / "config.json")


def test_random_weights_depend_on_name_and_seed_alone(tiny_config):
    one, other = RandomCheckpoint(tiny_config, 1), RandomCheckpoint(tiny_config, 2)
    last = one.weight(DOWN)
    one.weight("lm_head.weight")
    assert torch.equal(one.weight(DOWN), last)
    assert torch.equal(RandomCheckpoint(tiny_config, 1).weight(DOWN), last)
    assert not torch.equal(other.weight(DOWN), last)
    assert not torch.equal(one.weight(DOWN.replace("layers.1", "layers.0")), last)
    assert last.dtype == torch.bfloat16
    assert abs(float(last.float().std()) - 0.02) < 0.001
    assert (one.weight("model.norm.weight") == 1).all()
