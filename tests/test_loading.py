"""Adapters from what a user names to a model that speaks, on the little model of the examples."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import neuralchat_lite as ncl
from neuralchat_lite import loading
from neuralchat_lite.checkpoints.hub import Resolved
from neuralchat_lite.errors import CheckpointError, ConfigError, PromptError

from .patience import patience

NANO = Path(__file__).parents[1] / "examples/nano/model"
PROMPT = [{"role": "user", "content": "calculate 100 + 520 + 60"}]
Make = Callable[..., Path]


@pytest.fixture
def adapters(make_adapter: Make) -> list[Path]:
    return [make_adapter(NANO, name, seed) for seed, name in enumerate(("sft", "dpo"))]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEURALCHAT_LITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_an_unquantized_model_continues_as_pefts_merge_does(adapters: list[Path]) -> None:
    peft = pytest.importorskip("peft", reason="the test extra has it")
    from transformers import AutoModelForCausalLM

    merged = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32)
    for adapter in adapters:
        merged = peft.PeftModel.from_pretrained(merged, adapter).merge_and_unload()
    merged = merged.bfloat16().float()  # rounded once
    model = ncl.load(NANO, dtype="fp32", adapters=adapters)
    ids = [1, *range(40, 60)]
    want = merged.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)
    got = ncl.generate(model, ids, max_new_tokens=20)
    assert list(got.token_ids) == want[0, len(ids) : len(ids) + len(got.token_ids)].tolist()
    plain = ncl.generate(ncl.load(NANO, dtype="fp32"), ids, max_new_tokens=20)
    assert got.token_ids != plain.token_ids
    assert model.report()["adapters"] == ["sft", "dpo"]


def test_quantizing_with_adapters_is_quantizing_their_merge(
    adapters: list[Path], tmp_path: Path
) -> None:
    merged = ncl.merge(NANO, adapters, tmp_path / "merged")
    name = "model.safetensors"
    want = ncl.quantize(merged, None, tmp_path / "of-the-merge")
    got = ncl.quantize(NANO, None, tmp_path / "at-once", adapters=adapters)
    assert (got / name).read_bytes() == (want / name).read_bytes()
    other = ncl.quantize(NANO, None, tmp_path / "one", adapters=adapters[:1])
    assert (got / name).read_bytes() != (other / name).read_bytes()


def test_a_cached_model_knows_its_adapters_and_is_found_again(adapters: list[Path]) -> None:
    first = ncl.load(NANO, adapters=adapters)
    stages: list[str] = []
    again = ncl.load(NANO, adapters=adapters, progress=lambda step: stages.append(step.stage))
    assert again.folder == first.folder
    assert "quantize" not in stages
    alone = ncl.load(first.folder)
    assert len(alone.adapters) == 2
    assert all(name.startswith("sha256 ") for name in alone.adapters)
    assert ncl.load(NANO).adapters == ()
    assert (
        alone.generate(PROMPT, max_new_tokens=8).token_ids
        == first.generate(PROMPT, max_new_tokens=8).token_ids
    )


def test_an_adapters_tokenizer_and_template_win_and_stay_with_the_quantized_model(
    adapters: list[Path], tmp_path: Path
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(NANO / name, adapters[0])
    (adapters[0] / "chat_template.jinja").write_text("sft: {{ messages[0].content }}")
    model = ncl.load(NANO, adapters=adapters)
    assert model.tokenizer.chat_template == "sft: {{ messages[0].content }}"
    assert ncl.load(model.folder).tokenizer.chat_template == model.tokenizer.chat_template
    (adapters[1] / "chat_template.jinja").write_text("dpo")
    merged = ncl.merge(NANO, adapters, tmp_path / "merged")
    assert ncl.load(merged, dtype="bf16").tokenizer.chat_template == "dpo"
    assert ncl.load(NANO, adapters=adapters, dtype="bf16").tokenizer.chat_template == "dpo"


def test_a_template_of_its_own_wins_over_one_inside_the_bases_tokenizer_config(
    adapters: list[Path], tmp_path: Path
) -> None:
    base = Path(shutil.copytree(NANO, tmp_path / "base"))
    (base / "chat_template.jinja").unlink()
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "old"}))
    assert ncl.load(base, dtype="bf16").tokenizer.chat_template == "old"
    (adapters[0] / "chat_template.jinja").write_text("new")
    assert ncl.load(base, dtype="bf16", adapters=adapters).tokenizer.chat_template == "new"


def test_a_tokenizer_that_writes_tokens_without_a_row_is_refused_at_load(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(NANO, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    new = content["added_tokens"][0] | {"id": 679, "content": "<|im_start|>"}
    content["added_tokens"].append(new)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text("<|im_start|>{{ messages[0].content }}")
    for options in ({"dtype": "bf16"}, {"cache_dir": tmp_path / "cache"}):
        with pytest.raises(
            CheckpointError, match=r"has 680 tokens, but the model's embedding has only 679 rows"
        ):
            ncl.load(folder, **options)


def test_a_vocabulary_larger_than_the_embedding_is_refused_at_load(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(NANO, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["unheard"] = 679
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"'unheard' is 679.*give the tokenizer files of"):
        ncl.load(folder, dtype="bf16")


def test_an_added_token_that_nothing_writes_only_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(NANO, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    model = ncl.load(folder, dtype="bf16")
    assert "has 680 tokens, but the model's embedding has only 679 rows" in caplog.text
    assert model.generate("2 + 2", max_new_tokens=1).text
    with pytest.raises(PromptError, match="679"):
        model.generate("[PAD]", max_new_tokens=1)


def test_an_adapters_tokenizer_larger_than_the_embedding_is_refused(adapters: list[Path]) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(NANO)
    spare = 679 - len(tokenizer)
    tokenizer.add_tokens([f"<new{index}>" for index in range(spare)])
    tokenizer.save_pretrained(adapters[1])
    assert ncl.load(NANO, dtype="bf16", adapters=adapters)
    tokenizer.add_tokens(["<|im_start|>"])
    tokenizer.save_pretrained(adapters[1])
    with pytest.raises(CheckpointError, match=r"dpo has 680 tokens, .* 679 rows .*: give a"):
        ncl.load(NANO, dtype="bf16", adapters=adapters)


def test_an_adapters_broken_tokenizer_is_named_by_its_own_folder(adapters: list[Path]) -> None:
    (adapters[0] / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=rf"the tokenizer in {adapters[0]} cannot be read"):
        ncl.load(NANO, adapters=adapters)


def test_a_quantized_folder_takes_no_adapters(adapters: list[Path], tmp_path: Path) -> None:
    folder = ncl.quantize(NANO)
    with pytest.raises(ConfigError, match=r"merged before quantizing.*give the original"):
        ncl.load(folder, adapters=adapters)
    with pytest.raises(ConfigError, match="merged before quantizing"):
        ncl.merge(folder, adapters, tmp_path / "out")


def test_adapters_are_a_list(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"adapters must be a list.*write it as \['sft'\]"):
        ncl.load(NANO, adapters="sft")
    with pytest.raises(ConfigError, match=r"at least one adapter, got none"):
        ncl.merge(NANO, [], tmp_path / "out")
    with pytest.raises(CheckpointError, match="give the path of an adapter folder"):
        ncl.quantize(NANO, adapters=["missing"])


def test_the_hub_name_of_an_adapter_is_downloaded_and_is_part_of_the_key(
    adapters: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    commit = "0123456789abcdef0123456789abcdef01234567"

    def download(name: str, *, revision: str | None, token: str, **_: Any) -> str:
        assert (name, revision, token) == ("org/sft", None, "secret")
        return str(shutil.copytree(adapters[0], tmp_path / commit, dirs_exist_ok=True))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model = ncl.load(NANO, adapters=["org/sft"], token="secret")
    noted = json.loads((model.folder / "manifest.json").read_text())["adapters"]
    assert [(entry["hub"], entry["revision"]) for entry in noted] == [("org/sft", commit)]
    assert model.report()["adapters"] == ["org/sft"]
    assert model.folder.name.startswith("model_sft-int4-g32-")


@pytest.mark.parametrize(
    ("said", "hub", "warned"),
    [
        ("org/other", ("org/nano", "c0ffee"), True),
        ("org/nano", ("org/nano", "c0ffee"), False),
        ("/home/me/nano", ("org/nano", "c0ffee"), False),
        ("org/other", None, False),
    ],
)
def test_an_adapter_of_another_hub_model_that_fits_is_merged_with_a_warning(
    adapters: list[Path],
    caplog: pytest.LogCaptureFixture,
    said: str,
    hub: tuple[str, str] | None,
    warned: bool,
) -> None:
    path = adapters[0] / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": said}))
    with caplog.at_level(logging.WARNING, "neuralchat_lite"):
        loading.open_with_tokenizer(Resolved(NANO, hub), [Resolved(adapters[0])])
    assert (f"sft says that it was trained on {said}" in caplog.text) == warned


OPENS = """
import collections, json, os, sys
import neuralchat_lite as ncl

model, own = sys.argv[1:]
ncl.load(model)  # into the cache, so that the next load finds it there
opened = collections.Counter()

def count(event, arguments):
    if event == "open" and isinstance(arguments[0], str | os.PathLike):
        path = os.path.realpath(os.fspath(arguments[0]))
        if path.startswith(os.path.realpath(own)) or path.startswith(os.path.realpath(model)):
            opened[path] += 1

sys.addaudithook(count)
ncl.load(model)
print(json.dumps(opened))
"""


def test_loading_from_the_cache_opens_each_file_of_the_entry_once(cache: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", OPENS, str(NANO), str(cache)],
        capture_output=True,
        text=True,
        timeout=patience(120),
        check=True,
    )
    counts = {Path(path): count for path, count in json.loads(ran.stdout).items()}
    ours = {path.name: n for path, n in counts.items() if path.parent.parent == cache.resolve()}
    read = {"manifest.json", "config.json", "quantization_config.json", "generation_config.json"}
    assert read < set(ours)
    assert {name: n for name, n in ours.items() if n > 1} == {}


def test_an_unquantized_model_that_changes_while_it_is_loaded_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(NANO, tmp_path / "model")
    honest = loading.open_native

    def late(*arguments: Any, **options: Any) -> Any:
        running = honest(*arguments, **options)
        (folder / "model.safetensors").touch()
        return running

    monkeypatch.setattr(loading, "open_native", late)
    with pytest.raises(CheckpointError, match=r"model\.safetensors has changed since"):
        ncl.load(folder, dtype="fp32")
