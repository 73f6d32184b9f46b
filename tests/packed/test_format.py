import json
import os
import shutil
from dataclasses import asdict

import pytest
import torch
from safetensors import safe_open

from neuralchat_lite.checkpoints.checkpoint import open_checkpoint
from neuralchat_lite.checkpoints.kinds import is_packed
from neuralchat_lite.errors import CacheError, ConfigError
from neuralchat_lite.kernels.layout import PackedMatrix, pack_codes, pack_groups
from neuralchat_lite.packed import manifest as manifest_module
from neuralchat_lite.packed.format import open_packed
from neuralchat_lite.packed.quantize import quantize_checkpoint
from neuralchat_lite.quantization.config import WeightOnlyQuantConfig
from neuralchat_lite.quantization.levels import LEVELS
from neuralchat_lite.quantization.rtn import quantize_rtn
from neuralchat_lite.quantization.search import quantize_search

UP = "model.layers.1.mlp.up_proj"


@pytest.fixture
def packed(write_checkpoint, tmp_path):
    return quantize_checkpoint(
        open_checkpoint(write_checkpoint()), WeightOnlyQuantConfig(), tmp_path / "packed"
    )


def sealed(folder):
    """Make the manifest right again after a change, as somebody who forges a folder would."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name, entry in manifest["files"].items():
        entry["size"] = (folder / name).stat().st_size
        entry["sha256"] = manifest_module.sha256_of(folder / name)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_dtype": "int8", "scheme": "asym", "group_size": 128},
        {"weight_dtype": "int4_fullrange", "scale_dtype": "fp32", "group_size": -1},
        {"weight_dtype": "int4", "scheme": "asym", "scale_dtype": "bf16", "lm_head": "int4"},
        {"modules_to_not_convert": ["lm_head", "model.layers.0"]},
        {"scheme": "affine", "group_size": 64},
        {
            "overrides": {
                "lm_head": {"group_size": 128, "scheme": "asym"},
                "model.layers.1.*": {"weight_dtype": "int8", "scale_dtype": "bf16"},
                "*.down_proj": {"scheme": "affine"},
            }
        },
        {"weight_dtype": "int8", "scheme": "affine", "scale_dtype": "bf16"},
        {"weight_dtype": "int4_clip", "group_size": 64},
    ],
)
def test_weights_come_back_as_they_were_quantized(write_checkpoint, tmp_path, tied, options):
    checkpoint = open_checkpoint(write_checkpoint(tie_word_embeddings=tied, vocab_size=75))
    config = WeightOnlyQuantConfig(**options)
    model = open_packed(quantize_checkpoint(checkpoint, config, tmp_path / "out"))
    assert model.config == config
    assert model.architecture == checkpoint.architecture
    for spec in checkpoint.architecture.tensors():
        name = "lm_head.weight" if spec.role == "lm_head" else spec.name
        got, want = model.weight(name), checkpoint.weight(name)
        module = name.removesuffix(".weight")
        if spec.role not in ("linear", "lm_head") or not config.converts(module):
            assert torch.equal(got, want)
            assert got.dtype == want.dtype
            continue
        assert isinstance(got, PackedMatrix)
        assert (got.rows, got.cols) == tuple(want.shape)
        settings = config.settings_of(module)
        chosen = asdict(settings)
        if settings.weight_dtype == "int4":
            del chosen["weight_dtype"]
        quantize = quantize_rtn if "weight_dtype" in chosen else quantize_search
        matrix = quantize(want, **chosen)
        assert got.weight_dtype == LEVELS[settings.weight_dtype].stored
        assert got.group_size == settings.group_size
        assert torch.equal(got.codes, pack_codes(matrix.codes, got.weight_dtype))
        assert torch.equal(got.scales, pack_groups(matrix.scales))
        assert got.scheme == settings.scheme
        if got.minima is not None:
            assert torch.equal(got.minima, pack_groups(matrix.minima))
        if got.zeros is not None:
            assert torch.equal(got.zeros, pack_groups(matrix.zeros))


TABLE = "model.embed_tokens"


def test_a_tied_embedding_that_is_quantized_like_the_head_is_the_head(write_checkpoint, tmp_path):
    checkpoint = open_checkpoint(write_checkpoint(tie_word_embeddings=True, vocab_size=75))
    config = WeightOnlyQuantConfig(overrides={TABLE: "int8"})
    model = open_packed(quantize_checkpoint(checkpoint, config, tmp_path / "out"))
    table, head = model.weight(f"{TABLE}.weight"), model.weight("lm_head.weight")
    assert table.codes.data_ptr() == head.codes.data_ptr()
    with safe_open(tmp_path / "out/model.safetensors", framework="pt") as file:
        assert not any(name.startswith(TABLE) for name in sorted(file.keys()))


@pytest.mark.parametrize("tied", [False, True])
def test_an_embedding_with_settings_of_its_own_is_a_matrix_of_its_own(
    write_checkpoint, tmp_path, tied
):
    checkpoint = open_checkpoint(write_checkpoint(tie_word_embeddings=tied, vocab_size=75))
    settings = {"weight_dtype": "int8", "group_size": 64, "scheme": "affine"}
    config = WeightOnlyQuantConfig(overrides={TABLE: settings})
    model = open_packed(quantize_checkpoint(checkpoint, config, tmp_path / "out"))
    table, head = model.weight(f"{TABLE}.weight"), model.weight("lm_head.weight")
    want = quantize_rtn(checkpoint.weight(f"{TABLE}.weight"), **settings, scale_dtype="fp16")
    assert torch.equal(table.codes, pack_codes(want.codes, "int8"))
    assert torch.equal(table.minima, pack_groups(want.minima))
    assert (head.weight_dtype, head.group_size, head.scheme) == ("int8", 32, "sym")


def test_a_pattern_that_happens_to_match_the_embedding_leaves_it_as_it_is(
    write_checkpoint, tmp_path
):
    checkpoint = open_checkpoint(write_checkpoint())
    for pattern in ("*", "model.embed*"):
        config = WeightOnlyQuantConfig(overrides={"model.layers.0.*": "int8", pattern: "int4"})
        if pattern != "*":
            with pytest.raises(ConfigError, match="matches no matrix of this model"):
                quantize_checkpoint(checkpoint, config, tmp_path / "other")
            continue
        model = open_packed(quantize_checkpoint(checkpoint, config, tmp_path / "out"))
        assert torch.equal(model.weight(f"{TABLE}.weight"), checkpoint.weight(f"{TABLE}.weight"))


def test_a_tied_head_that_stays_as_it_is_keeps_the_embedding_as_it_is(write_checkpoint, tmp_path):
    checkpoint = open_checkpoint(write_checkpoint(tie_word_embeddings=True))
    config = WeightOnlyQuantConfig(overrides={TABLE: "int8"}, modules_to_not_convert=["lm_head"])
    with pytest.raises(ConfigError, match=r"keeps the head, which is tied to it: take one"):
        quantize_checkpoint(checkpoint, config, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "version"),
    [
        ({"weight_dtype": "int4_clip", "scheme": "asym"}, 1),
        ({"scheme": "asym"}, 2),
        ({"scheme": "affine"}, 2),
        ({"overrides": {"lm_head": "int4"}}, 2),
    ],
)
def test_a_folder_has_the_first_format_version_that_can_hold_it(
    write_checkpoint, tmp_path, options, version
):
    checkpoint, config = open_checkpoint(write_checkpoint()), WeightOnlyQuantConfig(**options)
    folder = quantize_checkpoint(checkpoint, config, tmp_path / "out")
    assert manifest_module.read_manifest(folder)["format_version"] == version


def test_int4_of_the_first_format_version_is_read_as_int4_clip(write_checkpoint, tmp_path):
    config = WeightOnlyQuantConfig("int4_clip", lm_head="int4_clip")
    folder = quantize_checkpoint(open_checkpoint(write_checkpoint()), config, tmp_path / "out")
    for name in ("quantization_config.json", "manifest.json"):
        text = (folder / name).read_text()
        assert "int4_clip" in text
        (folder / name).write_text(text.replace("int4_clip", "int4"))  # as release 0.1 wrote it
    sealed(folder)
    assert open_packed(folder).config == config


def test_every_whole_line_tensor_starts_on_a_line_of_the_mapped_file(packed, mapped_file):
    path = str(packed / "model.safetensors")
    aligned = 0
    with safe_open(path, framework="pt") as file:  # the library's own reader
        assert file.metadata() == {"format": "neuralchat_lite"}
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            assert mapped_file(tensor.data_ptr()) == path
            if tensor.nbytes % 64 == 0:
                aligned += 1
                assert tensor.data_ptr() % 64 == 0
            assert tensor.data_ptr() % tensor.element_size() == 0
    assert aligned > 20


def test_loading_copies_no_weight(write_checkpoint, tmp_path, anonymous_memory, mapped_file):
    checkpoint = open_checkpoint(write_checkpoint(vocab_size=150_000))
    folder = quantize_checkpoint(checkpoint, WeightOnlyQuantConfig(), tmp_path / "out")
    before = anonymous_memory()
    model = open_packed(folder)
    head, embedding = model.weight("lm_head.weight"), model.weight("model.embed_tokens.weight")
    assert int(head.codes.amax()) > 0  # every page is touched
    assert float(embedding.amax()) > 0
    assert anonymous_memory() - before < head.nbytes / 1024 / 4
    assert mapped_file(head.codes.data_ptr()) == str(folder / "model.safetensors")
    assert mapped_file(embedding.data_ptr()) == str(folder / "model.safetensors")


def test_another_way_to_verify_is_refused(packed):
    with pytest.raises(ConfigError, match="verify must be one of"):
        open_packed(packed, verify="yes")


def test_a_folder_can_be_moved_and_copied(packed, tmp_path):
    want = open_packed(packed).weight(f"{UP}.weight").codes.clone()
    moved = packed.rename(tmp_path / "moved")
    copy = shutil.copytree(moved, tmp_path / "copy")
    for folder in (moved, copy):
        assert torch.equal(open_packed(folder).weight(f"{UP}.weight").codes, want)


@pytest.fixture
def hashed(monkeypatch):
    """The names of files that are hashed from here on."""
    names = []
    honest = manifest_module.sha256_of

    def recording(path, progress=None):
        names.append(path.name)
        return honest(path, progress)

    monkeypatch.setattr(manifest_module, "sha256_of", recording)
    return names


def test_what_was_verified_is_not_hashed_again_until_it_is_touched(packed, tmp_path, hashed):
    open_packed(packed)
    assert hashed == []  # its maker hashed the bytes as it wrote them
    open_packed(packed, verify="always")
    assert "model.safetensors" in hashed
    hashed.clear()
    copy = shutil.copytree(packed, tmp_path / "copy")
    open_packed(copy)
    assert "model.safetensors" in hashed  # never verified where it lies
    hashed.clear()
    open_packed(copy)
    assert hashed == []
    os.utime(copy / "model.safetensors")
    open_packed(copy, verify="never")
    assert hashed == []
    open_packed(copy)
    assert "model.safetensors" in hashed


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_flipped_bit_is_found_and_its_file_named(packed, name):
    data = bytearray((packed / name).read_bytes())
    data[-1] ^= 1
    (packed / name).write_bytes(data)
    with pytest.raises(CacheError, match=rf"{name} is damaged.*cache remove packed"):
        open_packed(packed)


def flip_last_bit(path):
    """In place, with the time of the change set back."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_bit_flipped_behind_the_stamp_is_found_by_the_next_load(packed, name):
    # mtime can be set back by any program, ctime by none.
    open_packed(packed)
    flip_last_bit(packed / name)
    for _ in range(2):
        with pytest.raises(CacheError, match=rf"{name} is damaged"):
            open_packed(packed)


def damage_as_a_disk_does(packed):
    """A bit that changes without a write: size, times and inode say nothing."""
    flip_last_bit(packed / "model.safetensors")
    manifest = manifest_module.read_manifest(packed)
    manifest_module.write_stamp(packed, manifest_module.stamp_of(packed, manifest))


def test_what_was_found_damaged_is_not_served_again(packed):
    damage_as_a_disk_does(packed)
    open_packed(packed)  # the stamp fits: this is what verify="always" is for
    with pytest.raises(CacheError, match=r"model\.safetensors is damaged"):
        open_packed(packed, verify="always")
    for _ in range(2):
        with pytest.raises(CacheError, match=r"model\.safetensors is damaged.*cache remove packed"):
            open_packed(packed)


def test_a_folder_that_is_removed_while_it_is_opened_is_an_error_of_ours(packed, monkeypatch):
    honest = manifest_module.read_regular

    def late(path, limit):
        data = honest(path, limit)
        if path.name == ".verified":
            shutil.rmtree(packed)
        return data

    monkeypatch.setattr(manifest_module, "read_regular", late)
    with pytest.raises(CacheError, match=r"was removed or changed while it was opened.*again"):
        open_packed(packed)


def test_a_stamp_that_cannot_be_removed_is_told(packed):
    flip_last_bit(packed / "model.safetensors")
    (packed / ".verified").unlink()
    (packed / ".verified").mkdir()  # in place of a read-only folder, which root may write to
    with pytest.raises(CacheError, match=r"is damaged.*\.verified.*cannot be removed"):
        open_packed(packed, verify="always")


@pytest.mark.parametrize("name", ["model.safetensors", "quantization_config.json"])
def test_a_file_cut_short_is_found_at_every_load(packed, name):
    os.truncate(packed / name, (packed / name).stat().st_size - 1)
    with pytest.raises(CacheError, match=rf"{name} has \d+ bytes, the manifest says"):
        open_packed(packed, verify="never")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_missing_file_is_named(packed, name):
    (packed / name).unlink()
    with pytest.raises(CacheError, match=f"{name} cannot be read"):
        open_packed(packed, verify="never")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3}, "format version 3, but this release reads 1 and 2"),
        ({"files": {}}, "does not list config.json"),
        ({"files": {"../config.json": {"size": 1, "sha256": ""}}}, "malformed"),
        ({"files": {"config.json": {"size": "1", "sha256": ""}}}, "malformed"),
        ({"files": {"a\0b": {"size": 1, "sha256": ""}}}, "malformed"),
        ({"files": {"a" * 5000: {"size": 1, "sha256": ""}}}, "malformed"),
        ({"files": {"": {"size": 1, "sha256": ""}}}, "malformed"),
        ({"files": {"..": {"size": 1, "sha256": ""}}}, "malformed"),
        ({"files": {"config.json": {"size": True, "sha256": ""}}}, "malformed"),
        ({"files": {"config.json": ["size", "sha256"]}}, "malformed"),
        ({"files": []}, "'files' is missing or of the wrong type"),
        ({"format_version": True}, "format version True, but this"),
        ({"format_version": [1] * 10_000}, "format version .1, 1"),
        ({"adapters": ["a"]}, r"adapters\[0\] is malformed"),
        ({"adapters": [{"hub": "a/b", "files": {}}, None]}, r"adapters\[1\] is malformed"),
        ({"adapters": [{"hub": 3, "files": {}}]}, r"adapters\[0\] is malformed"),
        ({"adapters": [{"files": {"adapter_model.safetensors": 3}}]}, "is malformed"),
        ({"adapters": [{}]}, "is malformed"),
        ({"quantization": {"group_size": 10**400}}, "integer of 401 digits"),
        ({"quantization": {"modules_to_not_convert": [["a"]]}}, "must be a list of module names"),
        ({"quantization": {"nonsense": 1}}, "damaged .*nonsense"),
        ({"quantization": {"self": 1}}, "damaged .*self"),
        ({"quantization": {"weight_dtype": {"a": 1}}}, "damaged .*weight_dtype"),
        ({"source": 3}, "'source' is missing or of the wrong type"),
        ({"quantization": {"weight_dtype": "int8"}}, "the manifest says {"),
        ({"quantization": {"weight_dtype": "int3"}}, "damaged .*int3"),
    ],
)
def test_a_manifest_of_another_form_is_refused(packed, change, message):
    path = packed / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CacheError, match=message):
        open_packed(packed)


def test_a_digest_of_the_manifest_is_quoted_in_one_line(packed):
    path = packed / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["model.safetensors"]["sha256"] = "a\nb"
    path.write_text(json.dumps(manifest))
    with pytest.raises(CacheError, match=r"the manifest says 'a\\nb'") as error:
        open_packed(packed, verify="always")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["manifest.json", "quantization_config.json", "config.json"])
@pytest.mark.parametrize(
    "text", ["[]", '{"a": NaN}', '{"a":' * 100_000, '{"a": ' + "9" * 5000 + "}"]
)
def test_what_is_no_json_of_a_model_is_refused(packed, name, text):
    path = packed / name
    path.write_text(text)
    if name != "manifest.json":
        sealed(packed)
    with pytest.raises(CacheError, match=rf"{name}.*(JSON|format version)"):
        open_packed(packed)


@pytest.mark.parametrize(
    "name", ["manifest.json", "quantization_config.json", "config.json", "model.safetensors"]
)
@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        os.mkdir,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("lost"),
    ],
)
def test_what_is_no_regular_file_is_refused(packed, name, make):
    (packed / name).unlink()
    make(packed / name)
    with pytest.raises(CacheError, match=rf"{name} (cannot be read|has \d+ bytes)"):
        open_packed(packed)


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        os.mkdir,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("lost"),
    ],
)
def test_a_stamp_that_is_no_file_is_none(packed, make, hashed):
    (packed / ".verified").unlink()
    make(packed / ".verified")
    assert open_packed(packed)
    assert "model.safetensors" in hashed


@pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense", "\udcff"])
def test_a_manifest_that_is_none_is_refused(packed, text):
    (packed / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CacheError, match=r"manifest\.json"):
        open_packed(packed)


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 3},
        {"intermediate_size": 200},
        {"vocab_size": 61},
        {"model_type": "mistral"},
    ],
)
def test_a_config_json_of_another_model_is_refused(packed, change):
    path = packed / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    sealed(packed)
    with pytest.raises(CacheError, match=r"model\.safetensors"):
        open_packed(packed)


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": "2"},
        {"num_hidden_layers": 10**6},
        {"rope_scaling": {"rope_type": "nonsense"}},
        {"hidden_act": "gelu"},
        {"model_type": "gpt2"},
        {"num_attention_heads": 3},
    ],
)
def test_an_error_has_its_remedy_once(packed, change):
    path = packed / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    sealed(packed)
    with pytest.raises(CacheError) as caught:
        open_packed(packed)
    said = str(caught.value)
    assert said.endswith(": " + manifest_module.remedy(packed))
    assert not any(word in said for word in ("download", "copy the file", "use a model", "(delete"))


def test_weights_quantized_otherwise_are_refused(packed, write_checkpoint, tmp_path):
    other = quantize_checkpoint(
        open_checkpoint(write_checkpoint()),
        WeightOnlyQuantConfig(group_size=64),
        tmp_path / "other",
    )
    shutil.copy(other / "model.safetensors", packed)
    sealed(packed)
    with pytest.raises(CacheError, match="expected StoredTensor"):
        open_packed(packed)


def test_a_tokenizer_that_is_not_in_the_manifest_is_refused(packed):
    (packed / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(CacheError, match=r"chat_template\.jinja is not in the manifest"):
        open_packed(packed)


def test_packed_folders_and_checkpoints_are_told_apart(packed, write_checkpoint, tmp_path):
    folder = write_checkpoint()
    assert is_packed(packed)
    assert not is_packed(folder)
    assert not is_packed(tmp_path / "nothing")
    with pytest.raises(CacheError, match="is not a quantized model"):
        open_packed(folder)
    with pytest.raises(ValueError, match="is quantized already"):
        open_checkpoint(packed)
