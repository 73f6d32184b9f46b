"""Token ids are those of tokenizer.json, whatever else a folder says."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

import neuralchat_lite as ncl
from neuralchat_lite.checkpoints import tokenizer_model
from neuralchat_lite.checkpoints.tokenizer import load_tokenizer
from neuralchat_lite.errors import CheckpointError, ConfigError, PromptError
from neuralchat_lite.transformers.tokenizer import AutoTokenizer

from . import tokenizer_folders as made
from .tokenizer_folders import write_folder

# Further interpreters to run the matrix with, such as one with another version of transformers;
# separated like the folders of PATH.
PYTHONS = [each for each in os.environ.get("NEURALCHAT_LITE_PYTHONS", "").split(os.pathsep) if each]
SMOLLM2 = os.environ.get("NEURALCHAT_LITE_SMOLLM2")  # a folder of ../shared/tools/make_smollm2.py
SHARED = Path(__file__).parents[3] / "shared" / "data" / "tokenizers" / "mistral-7b"


def test_ids_are_those_of_tokenizer_json_for_every_class_and_model_type(tmp_path):
    assert made.check(tmp_path) == {"load": [], "AutoTokenizer": []}


@pytest.mark.parametrize("python", PYTHONS or [None])
def test_other_versions_of_transformers_give_the_same_ids(python):
    if python is None:
        pytest.skip("NEURALCHAT_LITE_PYTHONS names no further interpreters")
    ran = subprocess.run(
        [python, made.__file__], capture_output=True, text=True, check=False, timeout=600
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == {"load": [], "AutoTokenizer": []}


@pytest.mark.parametrize(
    "settings",
    [
        {"add_prefix_space": True},
        {"add_bos_token": True, "add_eos_token": True},
        {"add_bos_token": False},
        {"split_special_tokens": True},
        {"legacy": False},
        {"do_lower_case": True},
        {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}},
        {"fast_tokenizer_files": ["tokenizer.4.0.0.json"]},
        {"added_tokens_decoder": {"2": {"content": "</s>", "rstrip": True, "special": True}}},
        {"additional_special_tokens": None, "pad_token": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("style", made.STYLES)
def test_no_setting_changes_the_ids(tmp_path, style, settings):
    tokenizer = made.STYLES[style]()
    loaded = load_tokenizer(write_folder(tmp_path / "model", tokenizer, **settings))
    for text in made.TEXTS:
        assert loaded.encode(text) == tokenizer.encode(text).ids


def test_padding_and_truncation_of_the_training_are_set_aside(tmp_path):
    tokenizer = made.byte_level_style()
    text = "the cat had 1234567 mice. " * 9
    wanted = tokenizer.encode(text).ids
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=100)
    assert load_tokenizer(write_folder(tmp_path / "model", tokenizer)).encode(text) == wanted


def test_tokens_that_other_files_add_keep_the_ids_that_they_promise(tmp_path):
    tokenizer = made.byte_level_style()
    size = tokenizer.get_vocab_size()
    folder = write_folder(tmp_path / "model", tokenizer)
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_start|>": size}))
    assert load_tokenizer(folder).encode("<|im_start|>")[-1] == size
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_start|>": size + 3}))
    with pytest.raises(CheckpointError, match=r"lacks the token '<\|im_start\|>'.*together"):
        load_tokenizer(folder)


def test_added_tokens_that_change_ordinary_text_are_refused_by_name(tmp_path):
    tokenizer = made.byte_level_style()
    folder = write_folder(tmp_path / "model", tokenizer)
    (folder / "added_tokens.json").write_text(json.dumps({"23": tokenizer.get_vocab_size()}))
    with pytest.raises(CheckpointError, match=r"2023.*but tokenizer\.json gives.*remove"):
        load_tokenizer(folder)


def test_errors_name_the_folder_that_people_know(tmp_path):
    tokenizer = made.byte_level_style()
    folder = write_folder(tmp_path / "temporary", tokenizer)
    (folder / "added_tokens.json").write_text(json.dumps({"23": tokenizer.get_vocab_size()}))
    with pytest.raises(CheckpointError, match=r"the tokenizer in .*/known gives") as raised:
        load_tokenizer(folder, tmp_path / "known")
    assert "temporary" not in str(raised.value)


def test_a_special_token_that_is_only_in_the_vocabulary_is_one_token(tmp_path):
    tokenizer = made.byte_level_style()
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = []
    bare = Tokenizer.from_str(json.dumps(content))
    loaded = load_tokenizer(write_folder(tmp_path / "model", bare))
    assert loaded.encode("cat</s>")[-1] == 2


def test_what_the_tokenizer_saves_is_read_again(tmp_path):
    tokenizer = made.sentencepiece_style()
    loaded = load_tokenizer(write_folder(tmp_path / "model", tokenizer))
    loaded.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast"
    again = load_tokenizer(tmp_path / "saved")
    assert again.chat_template == made.CHATML
    assert again.encode(made.TEXTS[3]) == tokenizer.encode(made.TEXTS[3]).ids


def test_a_wrong_configuration_is_not_the_tokenizers_fault(tmp_path):
    folder = write_folder(tmp_path / "model", made.byte_level_style(), model_type="llama")
    for config in ({"model_type": "llama", "attention_bias": None}, {"model_type": 3}, {}):
        (folder / "config.json").write_text(json.dumps(config))
        assert load_tokenizer(folder).encode("2023")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path, name):
    folder = write_folder(tmp_path / "model", made.byte_level_style())
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read \(it is a named pipe"):
        load_tokenizer(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"chat_template": 3}'])
def test_a_damaged_chat_template_json_is_named(tmp_path, text):
    folder = write_folder(tmp_path / "model", made.byte_level_style())
    (folder / "chat_template.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"chat_template\.json"):
        load_tokenizer(folder)


def test_the_template_of_a_chat_template_json_is_used(tmp_path):
    folder = write_folder(tmp_path / "model", made.byte_level_style())
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "from json"}))
    assert load_tokenizer(folder).chat_template == "from json"
    (folder / "chat_template.jinja").write_text("from jinja")
    assert load_tokenizer(folder).chat_template == "from jinja"


def test_a_long_text_gives_no_warning_of_transformers(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    settings = {"model_max_length": 3}
    folder = write_folder(tmp_path / "model", made.byte_level_style(), **settings)
    loaded = load_tokenizer(folder)
    assert len(loaded.encode("the cat had 1234567 mice")) > 3
    assert len(AutoTokenizer.from_pretrained(folder).encode("the cat had 1234567 mice")) > 3
    assert "longer than" not in caplog.text


def test_auto_tokenizer_takes_settings_and_refuses_what_would_change_the_ids(tmp_path):
    folder = write_folder(tmp_path / "model", made.byte_level_style(), "GPT2Tokenizer", "llama")
    loaded = AutoTokenizer.from_pretrained(
        folder, padding_side="right", use_fast=False, trust_remote_code=True, legacy=False
    )
    assert loaded.padding_side == "right"
    assert loaded.model_input_names == ["input_ids", "attention_mask"]
    with pytest.raises(ConfigError, match=r"add_prefix_space=True.*leave it out"):
        AutoTokenizer.from_pretrained(folder, add_prefix_space=True)


def test_vocab_json_and_merges_are_read_with_the_limits_of_all(tmp_path):
    made.byte_level_style().model.save(str(tmp_path))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    config = {"model_type": "qwen2", "attention_bias": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_tokenizer(tmp_path)
    assert loaded.decode(loaded.encode("the cat  2023")) == "the cat  2023"
    loaded.chat_template = "{{ 'a' * 10 ** 10 }}"
    with pytest.raises(PromptError, match="512 MB"):
        loaded.apply_chat_template([{"role": "user", "content": "hi"}])


def test_tokenizer_model_alone_needs_an_extra_that_the_error_names(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").write_bytes(b"")
    monkeypatch.setattr(tokenizer_model, "is_installed", lambda module: module != "google.protobuf")
    with pytest.raises(CheckpointError, match=r"takes protobuf: run `pip install 'neuralchat_lite"):
        load_tokenizer(tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
@pytest.mark.skipif(
    not all(map(tokenizer_model.is_installed, tokenizer_model.NEEDED)),
    reason="needs the extra 'sentencepiece'",
)
@pytest.mark.parametrize("configured", [True, False])
def test_tokenizer_model_alone_gives_the_ids_of_its_tokenizer_json(tmp_path, configured):
    names = ["tokenizer.model", "tokenizer_config.json"][: 1 + configured]
    for name in names:
        shutil.copy(SHARED / name, tmp_path)
    loaded, right = load_tokenizer(tmp_path), load_tokenizer(SHARED)
    for text in made.TEXTS:
        assert loaded.encode(text) == right.encode(text)


@pytest.mark.skipif(SMOLLM2 is None, reason="NEURALCHAT_LITE_SMOLLM2 names no folder")
@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize(
    "name", ["LlamaTokenizerFast", "PreTrainedTokenizerFast", "GPT2TokenizerFast"]
)
@pytest.mark.parametrize("python", [sys.executable, *PYTHONS])
def test_smollm2_knows_the_capital_of_france(tmp_path, python, name, weights):
    folder = tmp_path / "model"
    # Its weights may be a link; other files may not lead out of the folder.
    weights_file = "model.safetensors"
    shutil.copytree(SMOLLM2, folder, ignore=shutil.ignore_patterns(weights_file))
    (folder / weights_file).symlink_to(Path(SMOLLM2).resolve() / weights_file)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tokenizer_class": name}))
    ran = subprocess.run(
        [python, "-c", ASK, folder, weights],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(ncl.__file__).parents[1],
        env=os.environ | {"NEURALCHAT_LITE_CACHE": str(tmp_path / "cache")},
    )
    assert "Paris" in ran.stdout, ran.stderr


ASK = """
import sys
import neuralchat_lite as ncl
model = ncl.load(sys.argv[1], sys.argv[2])
question = [{"role": "user", "content": "What is the capital of France?"}]
print(model.generate(question, max_new_tokens=20).text)
"""
